"""A checkpoint of any number of ranks is continued on any other; on the same number, to the bit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import end, on_ranks, start_trainer, train
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from tests.training.kill_and_resume import compare
from trainer.checkpoint import storage
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.restore import restore
from trainer.cli.train import main
from trainer.config.schema import CheckpointOptions
from trainer.distributed.ranks import Ranks

pytestmark = pytest.mark.ranks

LINES = {  # what is uneven is so on any number of ranks; the first has empty shards, the second tied weights
    "conv adamw": "model=uneven data.batch_size=48 loop.ema=0.9 optimizer=adamw",
    "gpt adafisher": "data=synthetic_tokens model=gpt model.layers=1 model.width=10 model.heads=2 "
    "data.train_samples=96 data.batch_size=24 data.context_length=9 optimizer=adafisher "
    "optimizer.update_interval=3",
}
LAYOUTS = {
    "alone": (1, ""),
    "ddp": (2, "parallel=ddp"),
    "fsdp": (3, "parallel=fsdp"),
    "hsdp": (4, "parallel=hsdp parallel.replicas=2"),
}
SAVED_BY = {
    "alone": ["ddp", "fsdp", "hsdp"],  # the same ranks again go on to the bit, see training/test_resume.py
    "ddp": ["alone"],
    "fsdp": ["ddp"],
    "hsdp": ["alone", "ddp", "fsdp", "hsdp"],
}
"""Whose checkpoints each layout loads: the extremes those of all, the others their neighbour's."""
BEFORE, AFTER = 4, 6


def run(layout: str, function: Any, root: Path) -> list[dict[str, Any]]:
    world_size, parallel = LAYOUTS[layout]
    lines = {name: f"{line} schedule=constant {parallel}" for name, line in LINES.items()}
    return on_ranks(world_size, function, lines, layout, root)


def save(ranks: Ranks, lines: dict[str, str], layout: str, root: Path) -> None:
    for name, line in lines.items():
        parts = steps(parts_of(ranks, *line.split()), BEFORE)
        options = CheckpointOptions(keep_last=1, async_=layout == "fsdp")
        checkpoints = CheckpointManager(root / layout / name, ranks, options)
        checkpoints.save(parts.state, monitors={})
        checkpoints.wait()


def load(ranks: Ranks, lines: dict[str, str], layout: str, root: Path) -> dict[str, dict[str, Any]]:
    """Continues from the checkpoints of other layouts; the outcomes by layout of the saving ranks, and run."""
    found: dict[str, dict[str, Any]] = {}
    for saved in SAVED_BY[layout]:
        for name, line in lines.items():
            parts = parts_of(ranks, *line.split())
            checkpoints = storage.list_checkpoints(root / saved / name)
            restore(checkpoints, parts.state, same_run=True, ranks=ranks)
            found.setdefault(saved, {})[name] = outcome(steps(parts, AFTER))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for layout in LAYOUTS:
        run(layout, save, root)
    return root


def undisturbed(ranks: Ranks) -> dict[str, dict[str, Any]]:
    return {
        name: outcome(steps(parts_of(ranks, *line.split(), "schedule=constant"), BEFORE + AFTER))
        for name, line in LINES.items()
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    return on_ranks(1, undisturbed)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_on_any_ranks_goes_on_on_any_others(
    layout: str, root: Path, expected: dict[str, dict[str, Any]]
) -> None:
    for one in run(layout, load, root):
        for saved in SAVED_BY[layout]:
            assert_same(expected, one[saved], where=f"saved by {saved}, on {layout}: ")


TINY = (
    "plugins=[tests.distributed.models] model=uneven optimizer=adamw loop.ema=0.9 data.batch_size=96 "
    "loop.max_steps=24 checkpoint.every_steps=4 loop.log_every=3"
)


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, "parallel=fsdp data=synthetic_tokens model=gpt model.dropout=0.1 model.layers=2 model.width=12"
        " model.heads=2 data.context_length=8 data.train_samples=960"),
        (3, "parallel=ddp checkpoint.async=true"),
    ],
)  # fmt: skip
def test_a_rank_is_killed_and_all_go_on_to_the_bit(world_size: int, options: str, tmp_path: Path) -> None:
    line = f"{TINY} {options}".split()
    assert train(world_size, [*line, f"hydra.run.dir={tmp_path / 'undisturbed'}"]) == [0] * world_size
    disturbed = [*line, f"hydra.run.dir={tmp_path / 'disturbed'}"]
    ranks = start_trainer(world_size, disturbed)
    wait_for_checkpoints(tmp_path / "disturbed", 2)
    ranks[1].kill()
    assert 0 not in end(ranks)
    assert train(world_size, disturbed, tmp_path / "out") == [0] * world_size
    assert "going on from" in (tmp_path / "out0").read_text()
    assert compare(tmp_path / "disturbed", tmp_path / "undisturbed") == []


def wait_for_checkpoints(run: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(storage.list_checkpoints(run / "checkpoints")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_damaged_for_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    line = [*TINY.split(), "parallel=fsdp", f"hydra.run.dir={tmp_path / 'run'}"]
    assert train(2, line) == [0, 0]
    newest, before, *_ = storage.list_checkpoints(tmp_path / "run" / "checkpoints")
    part = newest / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    (tmp_path / "run" / "status.json").unlink()
    assert train(2, line, tmp_path / "out") == [0, 0]
    said = (tmp_path / "out0").read_text().replace("\n", "")
    assert f"{newest.name} is damaged and is skipped" in said
    assert f"going on from {before}" in said


def test_torchrun_is_stopped_and_one_rank_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["model.widths=[4]", "loop.max_epochs=20", f"hydra.run.dir={tmp_path / 'run'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(tmp_path / "out", "w") as out:
        agent = subprocess.Popen(
            [*torchrun, "-m", "trainer", "parallel=fsdp", *line],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
        )
    wait_for_checkpoints(tmp_path / "run", 1)
    agent.terminate()
    assert agent.wait(60) == 1  # its own code; those of the ranks were 75
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted"
    assert main(["parallel=none", *line]) == 0
    assert f"step_{status['step']:08d}" in capsys.readouterr().out.replace("\n", "")
    records = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(10, 441, 10))
