"""State and reason of a run from its own status and its job's."""

from typing import Any

import pytest

from launch.run_states import QueueEntry, resolve_state

RUNNING, PREEMPTED = {"state": "running"}, {"state": "preempted", "error": "stopped at 5"}
FAILED, FINISHED = {"state": "failed", "error": "bad"}, {"state": "finished", "error": None}


@pytest.mark.parametrize(
    ("status", "job", "started", "current", "expected"),
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
        (RUNNING, QueueEntry(None, "TIMEOUT"), True, True, ("lost", "Slurm says TIMEOUT")),
        (RUNNING, QueueEntry(None), True, True, ("lost", "its job is gone without a word")),
        (FAILED, QueueEntry(None, "NODE_FAIL"), False, False, ("lost", "Slurm says NODE_FAIL")),
        (RUNNING, None, True, True, ("unknown", None)),
        ({"state": "unknown", "error": "format 2"}, QueueEntry(None), True, False, ("unknown", "format 2")),
        (FINISHED, None, True, True, ("finished", None)),
    ],
)
def test_judge(
    status: dict[str, Any],
    job: QueueEntry | None,
    started: bool,
    current: bool,
    expected: tuple[str, str | None],
) -> None:
    assert resolve_state(status, job, started=started, current=current, cancelled=False) == expected


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
