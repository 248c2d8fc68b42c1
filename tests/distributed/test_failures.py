"""What a rank's end, its signals and its bad batches do to the others, and what a user's mistake does to all."""

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.distributed.ranks import end, start_trainer, train

pytestmark = pytest.mark.ranks

RUN = "parallel=fsdp optimizer=adamw model.widths=[4] data.batch_size=64 loop.eval_every=1000"
ENDLESS = f"{RUN} loop.max_steps=1000000 checkpoint.every_steps=50 plugins=[tests.distributed.faults]"


def started(directory: Path, fault: str = "") -> list[BaseProcess]:
    """Two ranks in the middle of an endless run."""
    line = [*ENDLESS.split(), f"hydra.run.dir={directory / 'run'}"]
    return start_trainer(2, line, directory / "out", FAULT=fault)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trains(directory: Path) -> bool:
    metrics = directory / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def status(directory: Path) -> dict[str, object]:
    return json.loads((directory / "run" / "status.json").read_text())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others(victim: int, tmp_path: Path) -> None:
    ranks = started(tmp_path)
    wait_for(lambda: trains(tmp_path))
    begun = time.monotonic()
    ranks[victim].kill()
    codes = end(ranks)
    assert time.monotonic() - begun < 20
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    words = f"rank {victim} exited without reporting an error"
    said = (tmp_path / f"out{1 - victim}").read_text()
    assert f"crashed: {words}" in said
    assert f"crashed: rank {1 - victim}" not in said
    assert words in (tmp_path / "run" / "run.log").read_text()
    assert status(tmp_path)["state"] == "failed"
    assert words in str(status(tmp_path)["error"])


def test_a_rank_that_raises(tmp_path: Path) -> None:
    assert end(started(tmp_path, "raise")) == [1, 1]
    cause = "rank 1: RuntimeError: out of luck"
    assert status(tmp_path)["error"] == cause
    log = (tmp_path / "run" / "run.log").read_text()
    assert cause in log
    assert "rank 1: Traceback" in log
    assert f"crashed: {cause} (traceback in" in (tmp_path / "out1").read_text()


def test_a_rank_that_leaves(tmp_path: Path) -> None:
    assert end(started(tmp_path, "leave")) == [1, 0]
    cause = "rank 1 exited without reporting an error"
    assert str(status(tmp_path)["error"]).startswith(cause)
    assert cause in (tmp_path / "run" / "run.log").read_text()


def test_a_rank_that_hangs(tmp_path: Path) -> None:
    line = [*ENDLESS.split(), "parallel.timeout=3", f"hydra.run.dir={tmp_path / 'run'}"]
    codes = train(2, line, tmp_path / "out", FAULT="hang")
    assert codes == [1, 1]
    assert "rank 0: RuntimeError" in str(status(tmp_path)["error"])
    assert "imed out" in str(status(tmp_path)["error"])


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    ranks = started(tmp_path)
    wait_for(lambda: trains(tmp_path))
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert end(ranks) == [75, 75]
    assert status(tmp_path)["state"] == "preempted"
    step = status(tmp_path)["step"]
    assert f"stopped by SIGTERM at step {step}" in str(status(tmp_path)["error"])
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").exists()


def test_a_signal_to_one_rank_ends_an_evaluation_on_all(tmp_path: Path) -> None:
    line = f"{RUN} data.eval_batch_size=40 loop.max_steps=8 plugins=[tests.distributed.faults]"
    line = f"{line} hydra.run.dir={tmp_path / 'run'}"
    assert train(2, line.split(), tmp_path / "out", FAULT="signal in evaluation") == [75, 75]
    assert status(tmp_path)["error"] == "stopped by SIGTERM at step 8"
    assert train(2, line.split()) == [0, 0]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"evaluation"') == 1


def test_a_bad_batch_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    line = f"{RUN} loop.max_steps=8 loop.log_every=1 plugins=[tests.distributed.faults]"
    assert train(2, [*line.split(), f"hydra.run.dir={tmp_path / 'run'}"], FAULT="one nan") == [0, 0]
    line = f"{line} loop.max_bad_steps=2 hydra.run.dir={tmp_path / 'failed'}"
    codes = train(2, line.split(), tmp_path / "out", FAULT="all nan")
    records = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    by_step = {record["step"]: record for record in records if record["kind"] == "train"}
    assert "train/loss" not in by_step[5]
    assert by_step[8]["skipped_steps"] == 1
    assert by_step[8]["train/loss"] > 0
    assert codes == [1, 1]
    assert "2 steps in a row were not finite" in (tmp_path / "out0").read_text()
    assert "first in the inputs on rank 1" in (tmp_path / "out0").read_text()
    assert (tmp_path / "out1").read_text() == ""


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("model.widht=3", "did you mean width"),
        ("data.batch_size=63", "does not divide into 2 ranks"),
        ("data.holdout=0.001", "the evaluation split val has 1 sample for 2 ranks: start fewer ranks"),
        ("parallel=none", "2 ranks were started: choose parallel=ddp, fsdp or hsdp"),
        ("parallel=hsdp parallel.replicas=3", "parallel.replicas=3 does not divide the number of ranks, 2"),
        ("loop.activation_checkpointing=full", "finds no blocks"),
        (
            "plugins=[tests.distributed.faults]",
            "rank 1: plugin 'tests.distributed.faults' cannot be imported: DataError: this rank lacks something",
        ),
        ("--multirun", "--multirun trains on one rank"),
        ("optimizer=picky plugins=[tests.distributed.models]", "error: rank 1: optimizer=picky: out of luck"),
    ],
)
def test_a_mistake_is_told_once(wrong: str, hint: str, tmp_path: Path) -> None:
    line = [*RUN.split(), f"hydra.run.dir={tmp_path / 'deep' / 'run'}", *wrong.split()]
    assert train(2, line, tmp_path / "out", FAULT="mistake") == [2, 2]
    said = (tmp_path / "out0").read_text()
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert hint in said
    assert (tmp_path / "out1").read_text() == ""
    assert not (tmp_path / "deep").exists()
