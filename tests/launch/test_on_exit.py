"""How a start of a run ends: what becomes of status.json, and whether another start follows."""

from pathlib import Path

import pytest

from launch.on_exit import record_exit
from launch.worker import write_job
from trainer.rundir.status import read_status, write_status

LOG = "epoch 1\nerror: /data does not exist\nsubmitit: done\n"
LIMIT = 3


@pytest.mark.parametrize(
    ("said", "code", "restarts", "again", "state", "reason"),
    [
        (("finished", None), 0, 0, False, "finished", None),
        (("finished", None), 143, 0, False, "finished", None),  # a signal after the end
        (
            ("preempted", "stopped by SIGUSR2 at step 5"),
            75,
            0,
            True,
            "preempted",
            "stopped by SIGUSR2 at step 5; restart 1 of",
        ),
        (("preempted", "stopped"), 75, LIMIT, False, "failed", "launch.max_requeues=3 is used up"),
        (
            ("failed", "Connection closed by peer"),
            137,
            1,
            True,
            "preempted",
            "a task was ended by SIGKILL; restart 2 of",
        ),
        (("running", None), 139, LIMIT, False, "failed", "SIGSEGV; launch.max_requeues=3"),
        (None, 143, 0, True, "preempted", "SIGTERM"),
        (("failed", "ValueError: bad"), 1, 0, False, "failed", "ValueError: bad"),
        (None, 1, 0, False, "failed", "/data does not exist"),
        (None, 2, 0, False, "failed", "/data does not exist"),
    ],
)
def test_verdicts(
    said: tuple[str, str | None] | None,
    code: int,
    restarts: int,
    again: bool,
    state: str,
    reason: str | None,
    tmp_path: Path,
) -> None:
    if said:
        write_status(tmp_path, said[0], step=5, metrics={"a": 1.0}, primary="a", error=said[1])
    log = tmp_path / "log"
    log.write_text(LOG)
    assert record_exit(tmp_path, code, [tmp_path / "none", log], restarts, LIMIT) == again
    status = read_status(tmp_path)
    assert status["state"] == state
    assert (reason in status["error"]) if reason else status["error"] is None
    assert not said or (status["step"], status["metrics"], status["primary"]) == (5, {"a": 1.0}, "a")


def test_without_requeues_a_preempted_run_stays_preempted(tmp_path: Path) -> None:
    assert not record_exit(tmp_path, 75, [tmp_path / "log"], 0, 0)
    assert read_status(tmp_path)["state"] == "preempted"


def test_no_log(tmp_path: Path) -> None:
    record_exit(tmp_path, 1, [tmp_path / "log"], 0, LIMIT)
    assert str(tmp_path / "log") in read_status(tmp_path)["error"]


def test_an_error_of_an_earlier_start(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", error="of old")
    write_job(tmp_path, "1", 0)
    log = tmp_path / "log"
    log.write_text(LOG)
    record_exit(tmp_path, 2, [log], 0, LIMIT)
    assert read_status(tmp_path)["error"] == "/data does not exist"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("crashed: ValueError: bad\nsubmitit: done\n", "ValueError: bad"),
        ("Traceback\n  File x\nValueError: bad\nsrun: error: node1: task 0: Exited\n", "ValueError: bad"),
        ("srun: error: Unable to create step\n", "srun: error: Unable to create step"),
    ],
)
def test_last_words(log: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    record_exit(tmp_path, 1, [tmp_path / "none", tmp_path / "log"], 0, LIMIT)
    assert read_status(tmp_path)["error"] == words
