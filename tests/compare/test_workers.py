"""Comparisons of runs with data workers, as their user starts them: all processes end, and do so in time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.data.pictures import cats_and_dogs
from trainer.compare import runner
from trainer.compare.arguments import parse_command
from trainer.compare.planning import plan
from trainer.compare.runner import Runner
from trainer.report.read_runs import read_runs
from trainer.rundir.status import read_status, write_status

TINY = [
    "model=cnn",
    "model.widths=[4]",
    "data=image_folder",
    "data.image_size=16",
    "data.resize=16",
    "data.batch_size=16",
    "data.num_workers=1",
    "optimizer=sgd",
    "loop.max_steps=120",
    "loop.eval_every=60",
    "monitor.sinks=[jsonl]",
    "monitor.predictions=0",
    "tune.lr=[1e-3,1e-2]",
]
LIMIT = 100.0


def start(folder: Path, root: Path) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts a command."""
    argv = [sys.executable, "-m", "trainer.compare", *TINY, f"data.root={root}", f"compare.dir={folder}"]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_interrupted_and_continued(tmp_path: Path) -> None:
    root, folder = cats_and_dogs(tmp_path / "pictures"), tmp_path / "c"
    process = start(folder, root)
    try:
        second = folder / "tune" / "1_sgd,lr=0.01,seed=1"  # so that the first one ends, with its workers
        wait_until(lambda: (second / "metrics.jsonl").exists() and read_status(second).get("step", 0) > 0)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 75
        assert "interrupted; resume with: python -m trainer.compare " in said
        assert read_status(second)["state"] == "preempted"
        wait_until(lambda: is_gone(process.pid))
        process = start(folder, root)
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said
        assert "was killed" not in said
        wait_until(lambda: is_gone(process.pid))
    finally:
        if not is_gone(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert [run.state for run in read_runs([folder])] == ["finished"] * 3


def linger(path: Path, log: Path) -> None:
    """What a run's process does that does not leave."""
    write_status(path, "finished", step=1, metrics={"val/loss": 1.0}, primary="val/loss")
    time.sleep(1000)


def test_a_process_that_does_not_leave_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "train", linger)
    monkeypatch.setattr(runner, "LEAVE_SECONDS", 0.5)
    [each] = parse_command(["optimizer=sgd"]).contenders
    job = plan(tmp_path / "0", each, {}, 0, None)
    write_status(job.path, "preempted")  # by a process before, of which nothing is expected
    with Runner(tmp_path, Console(stderr=True), 1) as started:
        started.run([job], "run")
    assert read_status(job.path)["state"] == "finished"
    assert "sgd seed=0: its process was killed 0.5 s after the run had ended\n" in capsys.readouterr().err
