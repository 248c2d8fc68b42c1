"""State and reason of a run from its own status and its job's."""

from pathlib import Path
from typing import Any

import pytest

from launch import slurm_executor
from launch.options import SlurmOptions
from launch.run_states import ACTIVE, QueueEntry, resolve_state, run_states
from launch.sweep_dir import Sweep, SweepRun
from trainer.rundir.status import STATES

RUNNING, PREEMPTED = {"state": "running"}, {"state": "preempted", "error": "stopped at 5"}
FAILED, FINISHED = {"state": "failed", "error": "bad"}, {"state": "finished", "error": None}
OTHER_FORMAT = {"state": "unknown", "error": "has format 2"}


@pytest.mark.parametrize(
    ("status", "entry", "started", "current", "expected"),
    [
        ({}, QueueEntry(("PENDING", "Resources")), False, False, ("queued", "Resources")),
        ({}, QueueEntry(("RUNNING", "None")), False, False, ("starting", None)),
        (RUNNING, QueueEntry(("RUNNING", "None")), True, True, ("running", None)),
        (
            RUNNING,
            QueueEntry(("RUNNING", "None")),
            True,
            False,
            ("starting", None),
        ),  # that was its last start
        (PREEMPTED, QueueEntry(("PENDING", "BeginTime")), True, True, ("queued", "stopped at 5")),
        (
            FAILED,
            QueueEntry(("PENDING", "Priority")),
            False,
            False,
            ("queued", "Priority"),
        ),  # submitted again
        (FINISHED, QueueEntry(("COMPLETING", "None")), True, True, ("finished", None)),
        (FINISHED, QueueEntry(None, "COMPLETED"), True, True, ("finished", None)),
        (FAILED, QueueEntry(None, "FAILED"), True, True, ("failed", "bad")),
        (PREEMPTED, QueueEntry(None), True, True, ("preempted", "stopped at 5")),
        (PREEMPTED, QueueEntry(None, "CANCELLED by 0"), True, True, ("cancelled", "stopped at 5")),
        ({}, QueueEntry(None, "CANCELLED by 0"), False, False, ("cancelled", None)),
        (RUNNING, QueueEntry(None, "TIMEOUT"), True, True, ("vanished", "Slurm reports TIMEOUT")),
        (
            RUNNING,
            QueueEntry(None),
            True,
            True,
            ("vanished", "the job left the queue without reporting a result"),
        ),
        (
            FAILED,
            QueueEntry(None, "NODE_FAIL"),
            False,
            False,
            ("failed", "Slurm reports NODE_FAIL before the run had started"),
        ),
        (
            {},
            QueueEntry(None),
            False,
            False,
            ("vanished", "the job left the queue without reporting a result"),
        ),
        (RUNNING, None, True, True, ("unknown", None)),
        (OTHER_FORMAT, QueueEntry(None), True, False, ("unknown", "has format 2")),
        (OTHER_FORMAT, QueueEntry(("RUNNING", "None")), True, False, ("starting", "has format 2")),
        (OTHER_FORMAT, QueueEntry(("PENDING", "Priority")), True, False, ("queued", "has format 2")),
        (FINISHED, None, True, True, ("finished", None)),
    ],
)
def test_state_and_reason(
    status: dict[str, Any],
    entry: QueueEntry | None,
    started: bool,
    current: bool,
    expected: tuple[str, str | None],
) -> None:
    assert resolve_state(status, entry, started=started, current=current, cancelled=False) == expected
    assert expected[0] in STATES


def test_cancelled_by_us_without_accounts() -> None:
    assert resolve_state({}, QueueEntry(None), started=False, current=False, cancelled=True) == (
        "cancelled",
        None,
    )
    assert resolve_state(FINISHED, QueueEntry(None), started=True, current=True, cancelled=True) == (
        "finished",
        None,
    )
    completing = QueueEntry(("COMPLETING", "None"))
    assert resolve_state(RUNNING, completing, started=True, current=True, cancelled=True) == ("running", None)


def test_active_runs_are_in_states_of_their_own() -> None:
    assert set(ACTIVE) < STATES.keys()


def test_a_job_that_died_before_its_run_is_failed_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SweepRun("0_seed=0", ["seed=0"], jobs=["7"])
    sweep = Sweep(tmp_path, tmp_path, SlurmOptions(dir="x"), [run])
    monkeypatch.setattr(slurm_executor, "queued", lambda jobs: {})
    monkeypatch.setattr(slurm_executor, "ended", lambda jobs: {"7": "FAILED"})
    died = "Slurm reports FAILED before the run had started"
    [state], _ = run_states(sweep)
    assert (state.state, state.reason) == ("failed", died), "there is no log to be named"
    log = tmp_path / "jobs" / "7_0_log.out"
    log.parent.mkdir()
    log.write_text("cd: code: No such file or directory\n")
    [state], _ = run_states(sweep)
    assert (state.state, state.reason, state.log) == ("failed", f"{died}: see {log}", log)
