"""Batch norm on several ranks is that of one rank: outputs, gradients, running statistics, and what AdaFisher sees."""

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from trainer.distributed.batch_norm import SyncBatchNorm, synchronize_batch_norms
from trainer.distributed.ranks import Ranks

pytestmark = pytest.mark.ranks

CNN = "model=cnn model.widths=[5,6] data.batch_size=48 data.crop_padding=0 schedule=constant"
BLOCKS = "model=normed_blocks data.batch_size=48 data.crop_padding=0 schedule=constant"
CASES = {
    "sgd": f"{CNN} optimizer=sgd loop.ema=0.9",
    "adafisher": f"{CNN} optimizer=adafisher optimizer.update_interval=2",
    "adafisher paper": f"{CNN} optimizer=adafisher optimizer.rule=paper optimizer.update_interval=2",
    "sgd, recomputed": f"{BLOCKS} optimizer=sgd loop.activation_checkpointing=full",
}
STEPS = 6


def trajectories(ranks: Ranks, cases: dict[str, str]) -> dict[str, Any]:
    return {name: outcome(steps(parts_of(ranks, *line.split()), STEPS)) for name, line in cases.items()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return on_ranks(1, trajectories, CASES)[0]


@pytest.mark.parametrize(
    ("world_size", "strategy"),
    [(2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "hsdp parallel.replicas=2")],
)
def test_training_as_on_one_rank(world_size: int, strategy: str, alone: dict[str, Any]) -> None:
    cases = {name: f"{line} parallel={strategy}" for name, line in CASES.items()}
    for one in on_ranks(world_size, trajectories, cases):
        assert_same(alone, one)


def test_switched_off_each_rank_has_its_own(alone: dict[str, Any]) -> None:
    case = {"sgd": f"{CASES['sgd']} parallel=ddp parallel.sync_batch_norm=false"}
    one, two = on_ranks(2, trajectories, case)
    with pytest.raises(AssertionError):
        assert_same(alone["sgd"], one["sgd"])
    assert_same(one, two)


def model_of(dims: int, affine: bool, momentum: float | None) -> nn.Module:
    torch.manual_seed(0)
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
    norm = kind(3, affine=affine, momentum=momentum).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def inputs_of(dims: int) -> Tensor:
    """Of a mean that is large beside the deviation."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, *range(2, 2 + dims), dtype=torch.float64, generator=generator) * 2 + 100


FORMS = [
    (dims, affine, momentum) for dims in (0, 1, 2, 3) for affine in (True, False) for momentum in (0.1, None)
]


def passes(norm: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Any]:
    """Two training passes and one in evaluation, with the gradients of the sum of the outputs, weighted."""
    x.requires_grad_()
    outputs = [norm(x), norm(x * x)]
    sum((output * weights).sum() for output in outputs).backward()
    gradients = {name: p.grad for name, p in norm.named_parameters()}
    return {
        "y": outputs[1].detach(),
        "x": x.grad,
        "state": norm.state_dict(),
        "p": gradients,
        "eval": norm.eval()(x).detach(),
    }


def all_forms(ranks: Ranks) -> list[dict[str, Any]]:
    """On parts of 3 and 4 samples."""
    ranks.start(torch.device("cpu"), 60.0)
    found = []
    for form in FORMS:
        norm = model_of(*form)
        before = norm.state_dict().keys()
        synchronize_batch_norms(nn.Sequential(norm))
        assert isinstance(norm, SyncBatchNorm)
        assert norm.state_dict().keys() == before
        assert isinstance(copy.deepcopy(norm), SyncBatchNorm)
        part = slice(0, 3) if ranks.rank == 0 else slice(3, 7)
        x = inputs_of(form[0])
        found.append(passes(norm, x[part].clone(), x.cos()[part]))
    return found


def test_every_form_as_torchs_own() -> None:
    first, second = on_ranks(2, all_forms)
    for form, one, other in zip(FORMS, first, second, strict=True):
        x = inputs_of(form[0])
        whole = passes(model_of(*form), x.clone(), x.cos())
        for name in ("y", "x", "eval"):
            assert_same(whole[name], torch.cat([one[name], other[name]]), where=f"{form} {name}")
        for part in (one, other):
            assert_same(whole["state"], part["state"], where=str(form))
        for name, gradient in whole["p"].items():
            assert_same(gradient, one["p"][name] + other["p"][name], where=f"{form} {name}")


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def warn(ranks: Ranks) -> str:
    ranks.start(torch.device("cpu"), 60.0)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        synchronize_batch_norms(nn.Sequential(Own(3), nn.BatchNorm2d(3)))
    return said.getvalue()


def test_what_cannot_be_synchronized_is_named() -> None:
    first, second = on_ranks(2, warn)
    assert first.startswith(
        "warning: parallel.sync_batch_norm cannot change 0 (Own): each rank normalizes its own"
    )
    assert second == ""
