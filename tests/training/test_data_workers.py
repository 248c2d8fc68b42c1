"""A run with data workers that are killed, or that outlive their trainer, goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.pictures import cats_and_dogs
from tests.training.kill_and_resume import compare
from trainer.checkpoint import storage
from trainer.cli.train import main
from trainer.rundir.status import read_status

TINY = [
    "model=cnn",
    "model.widths=[4]",
    "data=image_folder",
    "data.image_size=16",
    "data.resize=16",
    "data.batch_size=16",
    "optimizer=sgd",
    "loop.max_steps=400",
    "loop.log_every=1",
    "loop.eval_every=100",
    "monitor.predictions=0",
    "monitor.sinks=[console,jsonl,runlog]",
]


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(run: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has taken a step."""
    metrics, before = run / "metrics.jsonl", time.time()
    while not metrics.exists() or metrics.stat().st_mtime < before or not metrics.stat().st_size:
        assert time.time() < before + 100
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_trainer_and_worker_are_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, f"data.root={cats_and_dogs(tmp_path / 'pictures')}"]
    assert main([*line, "data.num_workers=0", f"hydra.run.dir={tmp_path / 'undisturbed'}"]) == 0
    run = tmp_path / "run"
    line += ["data.num_workers=1", f"hydra.run.dir={run}"]

    with start(line) as process:
        wait_for_step(run, process)
        process.kill()
    with start(line) as process:  # its workers may be there still
        wait_for_step(run, process)
        [worker] = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 75
    killed = "a data worker was ended by SIGKILL: out of memory? lower data.num_workers or data.batch_size"
    assert err == f"error: {killed}\n"
    status = read_status(run)
    assert (status["state"], status["error"]) == ("preempted", killed)
    step = status["step"]
    assert 0 < step < 400
    assert [c.name for c in storage.list_checkpoints(run / "checkpoints")] == [f"step_{step:08d}"]

    capsys.readouterr()
    assert main(line) == 0
    assert f"going on from {run}/checkpoints/step_{step:08d}" in capsys.readouterr().out.replace("\n", "")
    assert compare(run, tmp_path / "undisturbed") == []
