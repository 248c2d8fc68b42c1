"""Optimizers that precondition by matrices, on two ranks against one: the same batches give the same parameters."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import on_ranks
from tests.optim.kronecker.small import CLASSES, build, network
from trainer.distributed.ranks import Ranks

pytestmark = pytest.mark.ranks

STEPS, BATCH, LIMIT = 5, 12, 300.0
CASES: dict[str, dict[str, Any]] = {
    "kfac": {"name": "kfac", "factor_interval": 2, "inverse_interval": 2, "factor_decay": 0.5},
    "ekfac": {"name": "kfac", "ekfac": True, "factor_interval": 2, "inverse_interval": 4},
    "foof": {"name": "foof", "factor_interval": 2},
    "eva": {"name": "eva"},
    "shampoo": {"name": "shampoo", "damping": 1e-3},
}


def train(options: dict[str, Any], rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Parameters and factors after a few steps; each rank has its part of each batch, in two micro-batches."""
    model = network()
    model.idle = nn.Linear(3, 3).double()  # type: ignore[assignment]
    model.idle.forward = lambda x: x  # type: ignore[method-assign]
    forward: nn.Module = model if size == 1 else DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = build(model, **options)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 2, 5, 5, dtype=torch.float64, generator=generator).chunk(size)[rank]
        y = torch.randint(CLASSES, (BATCH,), generator=generator).chunk(size)[rank]
        optimizer.zero_grad()
        for last, inputs, targets in zip((False, True), x.chunk(2), y.chunk(2), strict=True):
            quiet = size > 1 and not last
            with forward.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                (cross_entropy(forward(inputs), targets) / 2).backward()
        optimizer.step()
    found = {name: param.detach() for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        values = optimizer.state[param].items()
        found |= {f"{name} {key}": v for key, v in values if isinstance(v, Tensor) and "basis" not in key}
    return found


def train_all(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    ranks.start(torch.device("cpu"), LIMIT)
    return {name: train(options, ranks.rank, ranks.world_size) for name, options in CASES.items()}


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, dict[str, Tensor]]]:
    return on_ranks(2, train_all)


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_like_one(on_two: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    alone = train(CASES[name])
    for ours in on_two:
        assert ours[name].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                ours[name][key], value, rtol=1e-7, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}"
            )
    for key, value in on_two[0][name].items():
        assert torch.equal(value, on_two[1][name][key]), key
