"""Sweeps on this machine: they run, are stopped and go on."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.local_executor import share
from launch.run_states import run_states
from launch.sweep_dir import read_sweep

pytestmark = pytest.mark.slow

TINY = "launch=local device=cpu monitor.sinks=[jsonl,runlog] loop.max_steps=5 launch.snapshot=false"


def states(directory: Path) -> list[str]:
    return [row.state for row in run_states(read_sweep(directory))[0]]


def wait_for(directory: Path, state: str) -> None:
    end = time.monotonic() + 60
    while not (directory / "sweep.json").exists() or state not in states(directory):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_failed_run_alone_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, later = tmp_path / "here.txt", tmp_path / "later.txt"
    here.write_text("to be or not to be " * 100)
    text = (
        "data=text data.context_length=8 data.batch_size=4 model=gpt model.layers=1 model.width=8 model.heads=1 "
        "optimizer=adamw launch.array_parallelism=2"
    )
    sweep = tmp_path / "sweep"
    assert main([*TINY.split(), *text.split(), f"data.path={here},{later}", f"launch.dir={sweep}"]) == 1
    capsys.readouterr()
    assert states(sweep) == ["finished", "failed"]
    assert main(["status", str(sweep), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert str(later) in rows[1]["reason"]
    assert rows[0]["step"] == 5
    assert rows[0]["metric"] == "val/loss"

    later.write_text("that is the question " * 100)
    assert main(["rerun", str(sweep), "--failed"]) == 0
    assert "again: 1_data.path" in capsys.readouterr().out
    assert states(sweep) == ["finished", "finished"]
    assert main(["wait", str(sweep)]) == 0
    assert main(["rerun", str(sweep)]) == 0
    assert "nothing to run again" in capsys.readouterr().out
    assert main(["logs", str(sweep), "1"]) == 0
    assert "later.txt" in capsys.readouterr().out


def test_stopped_with_checkpoints_and_on_again(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    slow = "plugins=[tests.slurm.plugins] monitor.sinks=[jsonl,slow] loop.max_steps=30 seed=0,1"
    command = [sys.executable, "-m", "launch", *TINY.split(), *slow.split(), f"launch.dir={sweep}"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    wait_for(sweep, "running")
    assert states(sweep) == ["running", "queued"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert states(sweep) == ["preempted", "lost"]
    step = run_states(read_sweep(sweep))[0][0].step
    assert 0 < step < 30
    assert list((sweep / "0_seed=0" / "checkpoints").glob(f"step_*{step}"))
    assert main(["rerun", str(sweep), "--incomplete"]) == 0
    assert states(sweep) == ["finished", "finished"]


def test_a_killed_run_is_started_again_as_often_as_it_may(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    options = (
        "plugins=[tests.slurm.plugins] monitor.sinks=[preempted] launch.max_requeues=1 loop.max_steps=50"
    )
    assert main([*TINY.split(), *options.split(), f"launch.dir={sweep}"]) == 1
    row = run_states(read_sweep(sweep))[0][0]
    assert (row.state, row.restarts) == ("failed", 1)
    assert re.fullmatch(
        r"stopped by SIGUSR2 at step \d+; launch\.max_requeues=1 is used up", row.reason or ""
    )


def test_gpus_are_shared_out() -> None:
    assert share(["0", "1", "2", "3"], 2, 2) == [["0", "1"], ["2", "3"]]
    assert share(["4", "5", "6"], 1, 2) == [["4"], ["5"]]
    assert share(["0"], 1, 2) == [[], []]
    assert share([], 0, 3) == [[], [], []]
