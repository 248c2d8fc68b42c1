"""SAM against another package, step by step, and what the trainer does around it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import assert_same, outcome, steps
from tests.distributed.runs import parts_of as parts_on
from tests.training.helpers import MLP, parts_of
from trainer.distributed.ranks import Ranks
from trainer.optim import OPTIMIZERS, param_groups
from trainer.training.step import TrainStep

LINE = [*MLP, "model.widths=[6]", "loop.accumulate=2", "loop.clip_norm=0.7"]
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sam_sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sam_adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("name", BASES)
def test_twenty_steps_are_those_of_another_package(name: str) -> None:
    sam = pytest.importorskip("pytorch_optimizer").SAM
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    twin = copy.deepcopy(model)
    inputs, targets = torch.randn(20, 7, 5, dtype=torch.float64), torch.randint(3, (20, 7))
    base, options = BASES[name]
    theirs = sam(twin.parameters(), base_optimizer=base, rho=0.2, **options)
    checked = OPTIMIZERS.check({"name": name, "rho": 0.2, **options})
    optimizer = OPTIMIZERS.build(checked, model, param_groups(model, True))
    for batch, classes in zip(inputs, targets, strict=True):
        nn.functional.cross_entropy(model(batch), classes).backward()
        optimizer.climb(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), classes).backward()
        optimizer.descend()
        optimizer.step()
        optimizer.zero_grad()
        for finish in (theirs.first_step, theirs.second_step):
            nn.functional.cross_entropy(twin(batch), classes).backward()
            finish(zero_grad=True)
        for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BASES)
def test_steps_of_the_trainer_are_those_of_another_package(name: str) -> None:
    """With micro-batches and a clipped norm, which is that of the second gradient."""
    sam = pytest.importorskip("pytorch_optimizer").SAM
    parts = parts_of(*LINE, f"optimizer={name}", "optimizer.rho=0.2")
    model, loader = copy.deepcopy(parts.model), copy.deepcopy(parts.state.loader)
    base, options = BASES[name]
    theirs = sam(model.parameters(), base_optimizer=base, rho=0.2, **options)
    train_step = TrainStep(parts)
    for _ in range(5):
        train_step()
        batches = loader.next_batch()
        for finish in (theirs.first_step, theirs.second_step):
            for inputs, targets in batches:
                (nn.functional.cross_entropy(model(inputs), targets) / 2).backward()
            if finish == theirs.second_step:
                nn.utils.clip_grad_norm_(model.parameters(), 0.7)
            finish(zero_grad=True)
    for ours, expected in zip(parts.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_both_passes_draw_the_same_noise_and_statistics_count_once() -> None:
    """With rho=0 a step is that of the plain optimizer to the bit, with dropout and batch norms."""
    line = ["data.batch_size=32", "model.widths=[4]", "model.dropout=0.5"]
    pairs = [
        ("sam_sgd optimizer.rho=0", "sgd optimizer.fused=false"),
        ("sam_adamw optimizer.rho=0", "adamw optimizer.fused=false"),
    ]
    for names in pairs:
        outcomes = []
        for name in names:
            parts = parts_of(*line, *f"optimizer={name}".split())
            train_step = TrainStep(parts)
            for _ in range(3):
                train_step()
            outcomes.append((parts.model.state_dict(), parts.state.window))
        (ours, window), (theirs, expected) = outcomes
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert window is not None
        assert expected is not None
        assert torch.equal(window, expected)


def result(ranks: Ranks, line: str) -> dict[str, Any]:
    return outcome(steps(parts_on(ranks, *line.split()), 3))


@pytest.mark.ranks
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_on_ranks(parallel: str) -> None:
    line = " ".join([*LINE, "optimizer=sam_sgd", "device=cpu"])
    [alone] = on_ranks(1, result, line)
    for one in on_ranks(2, result, f"{line} parallel={parallel}"):
        assert_same(alone, one)
