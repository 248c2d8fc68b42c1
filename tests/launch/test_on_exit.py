"""How a start of a run ends: the content of status.json, and whether another start follows."""

from pathlib import Path
from typing import Any

import pytest

from launch.records import record_exit, write_job
from trainer.rundir.status import read_status, write_status

LOG = "epoch 1\nerror: /data does not exist\nsubmitit: done\n"
LIMIT = 3
TRAINING = {"step": 5, "metrics": {"a": 1.0}, "primary": "a"}


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    """Of two tasks, of which only the second one has written something."""
    (tmp_path / "log").write_text(LOG)
    return [tmp_path / "none", tmp_path / "log"]


def status_without_time(run: Path) -> dict[str, Any]:
    return {key: value for key, value in read_status(run).items() if key in ("state", "error", *TRAINING)}


@pytest.mark.parametrize("code", [0, 143], ids=["as it should", "a signal after the end"])
def test_a_finished_run_stays_finished(code: int, logs: list[Path], tmp_path: Path) -> None:
    write_status(tmp_path, "finished", **TRAINING, error=None)
    before = read_status(tmp_path)
    assert not record_exit(tmp_path, code, logs, 0, LIMIT)
    assert read_status(tmp_path) == before


@pytest.mark.parametrize(
    ("recorded", "code", "restarts", "again", "state", "error"),
    [
        (
            ("preempted", "stopped by SIGUSR2 at step 5"),
            75,
            0,
            True,
            "preempted",
            "stopped by SIGUSR2 at step 5; restart 1 of at most 3",
        ),
        (("preempted", "stopped"), 75, LIMIT, False, "failed", "stopped; reached launch.max_requeues=3"),
        (
            ("failed", "Connection closed by peer"),
            137,
            1,
            True,
            "preempted",
            "a task was killed by SIGKILL; restart 2 of at most 3",
        ),
        (
            ("running", None),
            139,
            LIMIT,
            False,
            "failed",
            "a task was killed by SIGSEGV; reached launch.max_requeues=3",
        ),
        (("running", None), 99, 0, True, "preempted", "a task exited with code 99; restart 1 of at most 3"),
        (("failed", "ValueError: bad"), 1, 0, False, "failed", "ValueError: bad"),
    ],
)
def test_a_start_that_has_trained(
    recorded: tuple[str, str | None],
    code: int,
    restarts: int,
    again: bool,
    state: str,
    error: str,
    logs: list[Path],
    tmp_path: Path,
) -> None:
    write_status(tmp_path, recorded[0], **TRAINING, error=recorded[1])
    assert record_exit(tmp_path, code, logs, restarts, LIMIT) == again
    assert status_without_time(tmp_path) == {"state": state, **TRAINING, "error": error}


@pytest.mark.parametrize(
    ("code", "again", "state", "error"),
    [
        (143, True, "preempted", "a task was killed by SIGTERM; restart 1 of at most 3"),
        (1, False, "failed", "/data does not exist"),
        (2, False, "failed", "/data does not exist"),
    ],
)
def test_a_start_that_has_written_no_status(
    code: int, again: bool, state: str, error: str, logs: list[Path], tmp_path: Path
) -> None:
    assert record_exit(tmp_path, code, logs, 0, LIMIT) == again
    assert status_without_time(tmp_path) == {"state": state, "error": error}


def test_the_direction_and_format_of_a_plugins_metric_are_kept(tmp_path: Path) -> None:
    declared = {"f1": {"higher_is_better": True, "format": "percent"}}
    write_status(tmp_path, "running", metrics={"val/f1": 0.5}, declared=declared, error=None)
    record_exit(tmp_path, 137, [tmp_path / "log"], 0, LIMIT)
    assert read_status(tmp_path)["declared"] == declared


def test_without_requeues_a_preempted_run_stays_preempted(tmp_path: Path) -> None:
    assert not record_exit(tmp_path, 75, [tmp_path / "log"], 0, 0)
    assert read_status(tmp_path)["state"] == "preempted"


def test_no_log(tmp_path: Path) -> None:
    record_exit(tmp_path, 1, [tmp_path / "log"], 0, LIMIT)
    assert read_status(tmp_path)["error"] == f"see {tmp_path / 'log'}"


def test_an_error_of_an_earlier_start(logs: list[Path], tmp_path: Path) -> None:
    write_status(tmp_path, "failed", error="of old")
    write_job(tmp_path, "1", 0)
    record_exit(tmp_path, 2, logs, 0, LIMIT)
    assert read_status(tmp_path)["error"] == "/data does not exist"


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("crashed: ValueError: bad\nsubmitit: done\n", "ValueError: bad"),
        ("Traceback\n  File x\nValueError: bad\nsrun: error: node1: task 0: Exited\n", "ValueError: bad"),
        ("srun: error: Unable to create step\n", "srun: error: Unable to create step"),
    ],
)
def test_the_last_error_of_a_log(log: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    record_exit(tmp_path, 1, [tmp_path / "none", tmp_path / "log"], 0, LIMIT)
    assert read_status(tmp_path)["error"] == error
