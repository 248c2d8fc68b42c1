"""Runs on a mixture of token shards: killed in the middle of a pass they go on to the bit, and on any ranks alike."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_corpus import write_shards
from tests.distributed.ranks import end, on_ranks, start_trainer, train
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from tests.training.kill_and_resume import compare
from trainer.checkpoint import storage
from trainer.distributed.ranks import Ranks

pytestmark = pytest.mark.ranks


@pytest.fixture
def line(tmp_path: Path) -> str:
    """A run of three passes through the first source, of which the second one is a part."""
    rng = np.random.default_rng(0)
    a = write_shards(tmp_path / "a", rng.integers(30, size=700), vocab_size=30, documents=20)
    b = write_shards(tmp_path / "b", rng.integers(30, size=400), vocab_size=30)
    return (
        f"data=tokens data.sources={{{a}:0.75,{b}:0.25}} data.context_length=9 data.val_fraction=0.1 "
        "data.batch_size=12 model=gpt model.layers=1 model.width=12 model.heads=2 model.norm=rms "
        "model.position=rope model.mlp=swiglu "
        "optimizer=adafisher optimizer.update_interval=3 schedule=constant device=cpu"
    )


MASKED = " data.document_mask=true model.position=learned"


@pytest.mark.parametrize(("world_size", "parallel", "more"), [(2, "ddp", ""), (3, "fsdp", MASKED)])
def test_killed_it_goes_on_to_the_bit(
    world_size: int, parallel: str, more: str, line: str, tmp_path: Path
) -> None:
    overrides = [
        *(line + more).split(),
        f"parallel={parallel}",
        "loop.max_steps=15",
        "checkpoint.every_steps=4",
    ]
    overrides += ["loop.log_every=1", "monitor.sinks=[jsonl]"]
    undisturbed, disturbed = (f"hydra.run.dir={tmp_path / name}" for name in ("undisturbed", "disturbed"))
    assert train(world_size, [*overrides, undisturbed]) == [0] * world_size
    processes = start_trainer(world_size, [*overrides, disturbed])
    deadline = time.monotonic() + 100
    while (
        not storage.list_checkpoints(tmp_path / "disturbed" / "checkpoints") and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    processes[-1].kill()
    assert all(code != 0 for code in end(processes))
    assert train(world_size, [*overrides, disturbed]) == [0] * world_size
    assert compare(tmp_path / "disturbed", tmp_path / "undisturbed") == []


def trained(ranks: Ranks, line: str) -> dict[str, Any]:
    return outcome(steps(parts_of(ranks, *line.split()), 7))


@pytest.mark.parametrize("more", ["", MASKED])
def test_as_on_one_rank(more: str, line: str) -> None:
    line += more
    expected = on_ranks(1, trained, line)[0]
    for world_size, parallel in ((2, "ddp"), (3, "fsdp")):
        for one in on_ranks(world_size, trained, f"{line} parallel={parallel} loop.accumulate=2"):
            assert_same(expected, one)
