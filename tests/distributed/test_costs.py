"""What AdaFisher costs on several ranks: collectives, bytes of state; and that half precision is half precision."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from tests.distributed.ranks import on_ranks
from tests.distributed.test_adafisher import LIMIT, model_of, result_of, train
from trainer.distributed.ranks import Ranks
from trainer.models.gpt import GPT, Block
from trainer.optim import AdaFisher

pytestmark = pytest.mark.ranks

RULES = {"calibrated": 1, "orthogonal": 2, "paper": 0, "released": 0}
"""Collectives of a step between refreshes where parameters are sharded: one of scalars, for the length of the step; and
one of the rows of blocks that several ranks have rows of."""


def gpt(layers: int, width: int = 16) -> GPT:
    torch.manual_seed(0)
    return GPT(layers=layers, width=width, heads=2, vocab_size=17, context_length=6)


def sharded(model: nn.Module, ranks: Ranks) -> nn.Module:
    mesh = DeviceMesh("cpu", [*range(ranks.world_size)])
    for module in [m for m in model.modules() if isinstance(m, Block)] + [model]:
        fully_shard(module, mesh=mesh)
    return model


def collectives(ranks: Ranks) -> dict[tuple[str, str, int], list[int]]:
    """Of each step of the optimizer, every third of which refreshes."""
    ranks.start(torch.device("cpu"), LIMIT)
    counts: dict[tuple[str, str, int], list[int]] = {}
    for strategy in ("ddp", "fsdp"):
        for rule in RULES:
            for layers in (1, 3):
                model = sharded(gpt(layers), ranks) if strategy == "fsdp" else gpt(layers)
                forward = model if strategy == "fsdp" else DistributedDataParallel(model)
                optimizer = AdaFisher(model, rule=rule, update_interval=3)  # type: ignore[arg-type]
                for _ in range(6):
                    optimizer.zero_grad()
                    forward(torch.randint(17, (4, 6))).square().mean().backward()
                    with CommDebugMode() as seen:
                        optimizer.step()
                    counts.setdefault((strategy, rule, layers), []).append(seen.get_total_counts())
    return counts


def test_collectives() -> None:
    for (strategy, rule, layers), steps in on_ranks(2, collectives)[0].items():
        between = RULES[rule] if strategy == "fsdp" else 0
        refresh = between + 1
        assert steps == [refresh, between, between] * 2, (strategy, rule, layers)


def state_bytes(ranks: Ranks) -> int:
    """Of the optimizer's state on this rank."""
    model: nn.Module = gpt(2, 128)
    if ranks.world_size > 1:
        ranks.start(torch.device("cpu"), LIMIT)
        model = sharded(model, ranks)
    optimizer = AdaFisher(model)
    model(torch.randint(17, (4, 6))).square().mean().backward()
    optimizer.step()
    tensors = [t for t in tree_leaves([*optimizer.state.values()]) if isinstance(t, torch.Tensor)]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


@pytest.fixture(scope="module")
def bytes_of_one_rank() -> int:
    return on_ranks(1, state_bytes)[0]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_state_is_sharded(world_size: int, bytes_of_one_rank: int) -> None:
    assert max(on_ranks(world_size, state_bytes)) <= (1 / world_size + 0.02) * bytes_of_one_rank


def in_half_precision(ranks: Ranks) -> dict[str, torch.Tensor]:
    ranks.start(torch.device("cpu"), LIMIT)
    mesh = DeviceMesh("cpu", [0, 1])
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    case: dict[str, Any] = {"model": "gpt", "rule": "calibrated", "steps": 6, "policy": policy}
    return result_of(train(case, ranks.rank, 2, mesh))


def test_half_precision_is_close() -> None:
    ours = on_ranks(2, in_half_precision)[0]
    start = {name: param.detach() for name, param in model_of("gpt").named_parameters()}
    alone = result_of(train({"model": "gpt", "rule": "calibrated", "steps": 6}))
    for name, param in start.items():
        moved = alone[f"{name} "] - param
        assert (ours[f"{name} "] - alone[f"{name} "]).norm() < 0.1 * moved.norm(), name
        for factor in ("H", "S"):
            value = alone[f"{name} {factor}"]
            assert (ours[f"{name} {factor}"] - value).norm() < 0.05 * value.norm(), f"{name} {factor}"
