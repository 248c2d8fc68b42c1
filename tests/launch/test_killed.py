"""Processes of a sweep on this machine that are killed: data workers, trainers, comparisons, the launcher itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.run_states import run_states
from launch.sweep_dir import read_sweep
from tests.data.pictures import cats_and_dogs
from trainer.rundir.status import read_status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux"),
]

TINY = [
    *[
        "launch=local",
        "launch.gpus_per_node=0",
        "launch.snapshot=false",
        "device=cpu",
        "model=cnn",
        "model.widths=[4]",
    ],
    *[
        "data=image_folder",
        "data.image_size=16",
        "data.resize=16",
        "data.batch_size=16",
        "data.num_workers=1",
    ],
    *[
        "optimizer=sgd",
        "loop.log_every=1",
        "loop.eval_every=1000",
        "monitor.sinks=[jsonl]",
        "monitor.predictions=0",
    ],
]


def start(sweep: Path, *options: str) -> subprocess.Popen[bytes]:
    argv = [*TINY, f"data.root={cats_and_dogs(sweep.parent / 'pictures')}", f"launch.dir={sweep}", *options]
    return subprocess.Popen([sys.executable, "-m", "launch", *argv])


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trains(run: Path, than: int = 0) -> bool:
    """Whether a run is at a later step than that, by another process."""
    status = read_status(run)
    return (
        status.get("state") == "running" and metrics_since(run, status["time"] - 60) and status["pid"] != than
    )


def metrics_since(run: Path, moment: float) -> bool:
    file = run / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0 and file.stat().st_mtime > moment


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_trainers_and_data_workers_are_started_again(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "0_run"
    with start(tmp_path / "sweep", "launch.max_requeues=2", "loop.max_steps=300") as launcher:
        wait_until(lambda: trains(run))
        [first] = children(launcher.pid)
        os.kill(first, signal.SIGKILL)  # its worker outlives it by seconds
        wait_until(lambda: trains(run, than=first) and children(read_status(run)["pid"]))
        [worker] = children(read_status(run)["pid"])
        os.kill(worker, signal.SIGKILL)
        assert launcher.wait(100) == 0
    [state] = run_states(read_sweep(tmp_path / "sweep"))[0]
    assert (state.state, state.step, state.restarts) == ("finished", 300, 2)
    log = state.log
    assert log is not None
    assert "error: a data worker was ended by SIGKILL: out of memory?" in log.read_text()


def test_no_run_outlives_its_launcher(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "0_run"
    with start(tmp_path / "sweep", "loop.max_steps=1000000") as launcher:
        wait_until(lambda: trains(run))
        launcher.kill()
    wait_until(lambda: read_status(run)["state"] != "running")
    [state] = run_states(read_sweep(tmp_path / "sweep"))[0]
    assert state.state == "preempted"
    assert state.reason == f"stopped by SIGTERM at step {state.step}"
    assert (run / "checkpoints" / f"step_{state.step:08d}").exists()


def test_the_run_of_a_killed_comparison_ends_with_it(tmp_path: Path) -> None:
    argv = [
        "model=cnn",
        "model.widths=[4]",
        "optimizer=sgd",
        "loop.max_steps=1000000",
        "monitor.sinks=[jsonl]",
    ]
    command = [sys.executable, "-m", "trainer.compare", *argv, f"compare.dir={tmp_path / 'c'}"]
    run = tmp_path / "c" / "runs" / "0_sgd,seed=0"
    with subprocess.Popen(command) as comparison:
        wait_until(lambda: trains(run))
        pid = read_status(run)["pid"]
        comparison.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert read_status(run)["state"] == "running", "it was killed, too"
