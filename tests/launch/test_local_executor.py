"""Sweeps on this machine: they run, are stopped and resume."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.local_executor import split_gpus
from launch.run_states import run_states
from launch.sweep_dir import read_sweep
from tests.slurm.plugins import opened, reached

pytestmark = pytest.mark.slow

TINY = "launch=local device=cpu monitor.sinks=[jsonl,runlog] loop.max_steps=5 launch.snapshot=false"

FORK = multiprocessing.get_context("fork")  # has imported all that a launch needs


def states(directory: Path) -> list[str]:
    return [row.state for row in run_states(read_sweep(directory))[0]]


def wait_for(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists():
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
    assert "rerunning 1_data.path" in capsys.readouterr().out
    assert states(sweep) == ["finished", "finished"]
    assert main(["wait", str(sweep)]) == 0
    assert main(["rerun", str(sweep)]) == 0
    assert "nothing to rerun" in capsys.readouterr().out
    assert main(["logs", str(sweep), "1"]) == 0
    assert "later.txt" in capsys.readouterr().out


def test_stopped_with_checkpoints_and_resumed(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    gated = "plugins=[tests.slurm.plugins] monitor.sinks=[jsonl,gate] loop.max_steps=12 seed=0,1"
    process = FORK.Process(target=launch, args=[*TINY.split(), *gated.split(), f"launch.dir={sweep}"])
    process.start()
    wait_for(reached(sweep / "0_seed=0", 5))
    assert states(sweep) == ["running", "queued"]
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 75
    assert states(sweep) == ["preempted", "vanished"]
    step = run_states(read_sweep(sweep))[0][0].step
    assert 5 <= step < 12
    assert list((sweep / "0_seed=0" / "checkpoints").glob(f"step_*{step}"))

    opened(sweep / "1_seed=1", 5).touch()
    both_at_a_time(sweep)
    assert main(["rerun", str(sweep), "--incomplete"]) == 0
    assert states(sweep) == ["finished", "finished"]


def launch(*argv: str) -> None:
    sys.exit(main(list(argv)))


def both_at_a_time(directory: Path) -> None:
    sweep = read_sweep(directory)
    sweep.options = dataclasses.replace(sweep.options, array_parallelism=2)
    sweep.write()


def test_a_killed_run_is_started_again_as_often_as_it_may(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    options = (
        "plugins=[tests.slurm.plugins] monitor.sinks=[preempted] launch.max_requeues=1 loop.max_steps=50"
    )
    assert main([*TINY.split(), *options.split(), f"launch.dir={sweep}"]) == 1
    row = run_states(read_sweep(sweep))[0][0]
    assert (row.state, row.restarts) == ("failed", 1)
    assert re.fullmatch(r"stopped by SIGUSR2 at step \d+; reached launch\.max_requeues=1", row.reason or "")


def test_gpus_are_split_between_slots() -> None:
    assert split_gpus(["0", "1", "2", "3"], 2, 2) == [["0", "1"], ["2", "3"]]
    assert split_gpus(["4", "5", "6"], 1, 2) == [["4"], ["5"]]
    assert split_gpus(["0"], 1, 2) == [[], []]
    assert split_gpus([], 0, 3) == [[], [], []]
