"""Any strategy on any number of ranks trains as one rank does."""

from typing import Any

import pytest
import torch

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError

pytestmark = pytest.mark.ranks

CONV = (
    "model=uneven data.batch_size=48 data.crop_padding=0 data.eval_batch_size=50 loop.ema=0.9 loop.clip_norm=0.5 "
    "loop.label_smoothing=0.1 schedule=constant"
)
GPT = (
    "data=synthetic_tokens model=gpt model.layers=3 model.width=20 model.heads=2 data.batch_size=24 "
    "data.train_samples=96 data.val_samples=31 data.context_length=9"
)
CASES = {
    "conv adamw, micro-batches": f"{CONV} optimizer=adamw loop.accumulate=2",
    "gpt sgd, recomputed": f"{GPT} optimizer=sgd loop.activation_checkpointing=full",
    "gpt nadam, every second block recomputed": f"{GPT} optimizer=nadam loop.activation_checkpointing=2",
}
STEPS = 4


def trajectories(
    ranks: Ranks, cases: dict[str, str], count: int = STEPS, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    return {
        name: outcome(steps(parts_of(ranks, *line.split(), dtype=dtype), count))
        for name, line in cases.items()
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return on_ranks(1, trajectories, CASES)[0]


@pytest.mark.parametrize(
    ("world_size", "strategy"),
    [
        (2, "parallel=ddp parallel.bucket_mb=0.001"),
        (3, "parallel=fsdp"),
        (4, "parallel=fsdp parallel.units=500 parallel.reshard_after_forward=false"),
        (4, "parallel=hsdp parallel.replicas=2"),
    ],
)
def test_as_on_one_rank(world_size: int, strategy: str, alone: dict[str, Any]) -> None:
    cases = {name: f"{line} {strategy}" for name, line in CASES.items()}
    ranks = on_ranks(world_size, trajectories, cases)
    for name in CASES:
        for one in ranks:
            assert_same(alone[name], one[name], where=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_muon_on_shards(dtype: torch.dtype) -> None:
    """Wide matrices, which the MLPs have, iterate on other products where they are whole and in float32."""
    line = f"{GPT} optimizer=muon optimizer.split_qkv=true"
    start = on_ranks(1, trajectories, {"muon": line}, 0, dtype)[0]["muon"]["model"]
    expected = on_ranks(1, trajectories, {"muon": line}, STEPS, dtype)[0]["muon"]["model"]
    sharded = on_ranks(2, trajectories, {"muon": f"{line} parallel=fsdp"}, STEPS, dtype)[0]["muon"]["model"]
    for name in (
        name for name, value in expected.items() if value.dim() > 1
    ):  # AdamW enlarges a bias's rounding
        moved = torch.linalg.vector_norm(expected[name] - start[name])
        assert torch.linalg.vector_norm(expected[name] - sharded[name]) < 0.05 * moved, name


def test_the_cases_do_train(alone: dict[str, Any]) -> None:
    """Otherwise it would be easy to train as one rank does."""
    start = on_ranks(1, trajectories, CASES, 0)[0]
    for name, result in alone.items():
        after, before = result["model"], start[name]["model"]
        still = {key for key in before if torch.equal(before[key], after[key])}
        assert still == {key for key in before if ".frozen." in key}, name
        assert all(value.isfinite().all() for value in after.values()), name


def first_step(ranks: Ranks, option: str) -> str:
    try:
        steps(parts_of(ranks, "model=idle", "optimizer=sgd", "parallel=ddp", option, dtype=torch.float32), 2)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("option", ["loop.accumulate=2", "parallel.find_unused_parameters=true"])
def test_unused_parameters_are_named(option: str) -> None:
    """In the first step, whose gradients would not have been averaged."""
    words = "the loss does not depend on idle.weight, idle.bias: set parallel.find_unused_parameters=true"
    assert on_ranks(2, first_step, option) == ["" if "unused" in option else words] * 2
