"""AdaFisher on several ranks against itself on one: the same batches give the same parameters and factors."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import on_ranks
from trainer.distributed.ranks import Ranks
from trainer.models.gpt import GPT, Block
from trainer.optim.adafisher import AdaFisher, Layer, View, register_layer

pytestmark = pytest.mark.ranks

STEPS, BATCH = 20, 24
LIMIT = 300.0
Case = dict[str, Any]


class ConvNet(nn.Module):
    """Every kind of convolution, group norm, a layer that is called twice, one that is never called, a bare weight.

    12 channels and 10 classes: neither 3 nor 4 ranks divide all axes, and some shards are empty.
    """

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(inplace=True))
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.norm = norm(6)
        self.scale = nn.Parameter(torch.ones(2, 6))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        x = F.relu(self.grouped(x))
        x = self.norm(self.up(x).mean((2, 3)))
        return self.head(self.frozen(x * self.scale.mean(0)))


class Projection(nn.Module):
    """y = A x, a layer type that AdaFisher does not know by itself; none of its parameters is called weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.mT


class Adapted(nn.Module):
    """Two projections, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Projection(12, 8), Projection(8, 8), nn.Linear(8, 10)
        self.never = Projection(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.mean((2, 3)).repeat(1, 4)))
        return self.head(x + torch.tanh(self.second(x)))


def projection(module: Projection) -> Layer:
    outputs, inputs = module.A.shape
    view = View((outputs, inputs), (outputs, 1), (1, inputs), (outputs,), (inputs,))
    return Layer(
        "Projection", lambda x, output: x.square().mean(0), lambda s: s.square().mean(0), {"A": view}
    )


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "adapted":
        register_layer(Projection)(projection)
        return Adapted().double()
    if kind.startswith("conv"):
        return ConvNet(nn.Identity if kind == "conv without layer norm" else nn.LayerNorm).double()
    return GPT(layers=2, width=12, heads=2, vocab_size=17, context_length=6).double()


def batch_of(kind: str, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    if kind in ("adapted", "conv", "conv without layer norm"):
        x = torch.randn(BATCH, 3, 5, 5, dtype=torch.float64, generator=generator)
        return x, torch.randint(10, (BATCH,), generator=generator)
    tokens = torch.randint(17, (BATCH, 7), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (Block, nn.ConvTranspose2d))] + [
        m for name, m in model.named_children() if name == "stem"
    ]


def train(case: Case, rank: int = 0, size: int = 1, mesh: DeviceMesh | None = None) -> AdaFisher:
    """20 steps; each rank has its part of each batch, in micro-batches."""
    model = model_of(case["model"])
    if case.get("checkpointing"):
        apply_activation_checkpointing(
            model,
            checkpoint_wrapper_fn=lambda m: checkpoint_wrapper(
                m, checkpoint_impl=CheckpointImpl.NO_REENTRANT
            ),
            check_fn=lambda m: m in blocks_of(model),
        )
    forward: nn.Module = model
    if mesh is not None:
        policy = case.get("policy", MixedPrecisionPolicy())
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    elif size > 1:
        forward = DistributedDataParallel(model, find_unused_parameters=case["model"] != "gpt")
    options = {
        "rule": case["rule"],
        "lr": 1e-2 if case["rule"] in ("calibrated", "orthogonal") else 1e-3,
        **case.get("options", {}),
    }
    optimizer = AdaFisher(model, update_interval=4, **options)
    accumulate = case.get("accumulate", 1)
    for step in range(case.get("steps", STEPS)):
        x, y = batch_of(case["model"], step)
        if "policy" in case:
            x = x.float() if x.is_floating_point() else x
        parts = list(
            zip(x.chunk(size)[rank].chunk(accumulate), y.chunk(size)[rank].chunk(accumulate), strict=True)
        )
        optimizer.zero_grad()
        for i, (inputs, targets) in enumerate(parts):
            last = i == len(parts) - 1
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(last)
            quiet = isinstance(forward, DistributedDataParallel) and not last
            with forward.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                output = forward(inputs)
                (F.cross_entropy(output.flatten(0, -2), targets.flatten()) / accumulate).backward()
        optimizer.step()
    return optimizer


def result_of(optimizer: AdaFisher) -> dict[str, Tensor]:
    """Parameters, state and diagnostics, with all rows of what is sharded."""
    result = {}
    for (name, param), state in (
        (item, optimizer.state.get(item[1], {})) for item in optimizer.model.named_parameters()
    ):
        name = name.replace("_checkpoint_wrapped_module.", "")
        for key, value in {"": param, **state}.items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
            result[f"{name} {key}"] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
    for name, row in optimizer.diagnostics().items():
        result[f"{name.replace('_checkpoint_wrapped_module.', '')} diagnostics"] = torch.tensor(
            [*row.values()], dtype=torch.float64
        )
    return result


CASES: list[Case] = [
    {"model": "conv", "rule": "calibrated"},
    {"model": "gpt", "rule": "calibrated"},
    # blocks of up to 5 rows: most of them are on one rank, some on several
    {
        "model": "gpt",
        "rule": "orthogonal",
        "steps": 8,
        "options": {"roles": {"*.weight": 5, "*norm*": "calibrated", "t*": "rooted"}},
    },
    {"model": "conv", "rule": "orthogonal", "accumulate": 2, "steps": 8},
    {"model": "conv", "rule": "calibrated", "accumulate": 2},
    {"model": "gpt", "rule": "calibrated", "checkpointing": True},
    {"model": "conv", "rule": "calibrated", "options": {"capture": "gradient"}},
    {"model": "conv", "rule": "paper"},
    {"model": "gpt", "rule": "paper", "accumulate": 2, "checkpointing": True},
    # its scalars of a layer norm square a sum over the batch, which a mean over ranks cannot give
    {"model": "conv without layer norm", "rule": "released"},
    {"model": "adapted", "rule": "calibrated"},
]
STRATEGIES = ["ddp 2", "ddp 4", "fsdp 2", "fsdp 3", "fsdp 4", "hsdp 2x2"]
RUNS = [
    (i, s) for i in range(len(CASES)) for s in STRATEGIES if i < 3 or s in ("ddp 2", "fsdp 3", "hsdp 2x2")
]


def meshes() -> dict[str, DeviceMesh]:
    """Of four ranks; made by all of them."""
    return {
        "fsdp 2": DeviceMesh("cpu", [0, 1]),
        "fsdp 3": DeviceMesh("cpu", [0, 1, 2]),
        "fsdp 4": DeviceMesh("cpu", [0, 1, 2, 3]),
        "hsdp 2x2": DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("replicate", "shard")),
    }


def train_all(ranks: Ranks) -> dict[tuple[int, str], dict[str, Tensor]]:
    """Each case on every strategy for this number of ranks."""
    ranks.start(torch.device("cpu"), LIMIT)
    strategies: dict[str, DeviceMesh | None] = {f"ddp {ranks.world_size}": None}
    if ranks.world_size == 4:
        strategies |= meshes()
    results = {}
    for i, name in RUNS:
        if name not in strategies:
            continue
        mesh = strategies[name]
        members = ranks.world_size if mesh is None else mesh.size()
        if ranks.rank < members:
            results[i, name] = result_of(train(CASES[i], ranks.rank, members, mesh))
    return results


@pytest.fixture(scope="module")
def results() -> dict[tuple[int, str], dict[str, Tensor]]:
    return on_ranks(2, train_all)[0] | on_ranks(4, train_all)[0]


@pytest.mark.parametrize(("i", "strategy"), RUNS)
def test_ranks_train_like_one(
    results: dict[tuple[int, str], dict[str, Tensor]], i: int, strategy: str
) -> None:
    ours = results[i, strategy]
    alone = result_of(train(CASES[i]))
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
