"""What all of them do: which layers they take, micro-batches, loss scales, state, learning."""

import copy
import statistics
from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.kronecker.small import build, network, take_step
from tests.training.helpers import parameters, parts_of
from trainer.checkpoint.state import random_state, set_random_state
from trainer.errors import ConfigError
from trainer.optim.protocols import CurvatureOptimizer, DiagonalPreconditioner, ReadsLossScale
from trainer.training.step import TrainStep

OPTIMIZERS: dict[str, list[str]] = {
    "kfac": ["optimizer=kfac"],
    "kfac averaged": ["optimizer=kfac", "optimizer.factor_decay=0.9", "optimizer.factor_interval=3"],
    "ekfac": [
        *("optimizer=kfac", "optimizer.ekfac=true"),
        *("optimizer.factor_interval=3", "optimizer.inverse_interval=3"),
    ],
    "foof": ["optimizer=foof", "optimizer.factor_interval=3", "optimizer.inverse_interval=4"],
    "eva": ["optimizer=eva"],
    "shampoo": ["optimizer=shampoo", "optimizer.interval=2"],
    "adahessian": ["optimizer=adahessian"],
}
LAYERWISE: dict[str, dict[str, Any]] = {
    "kfac": {"name": "kfac", "factor_interval": 3, "inverse_interval": 3},
    "ekfac": {"name": "kfac", "ekfac": True, "factor_interval": 2, "inverse_interval": 4},
    "foof": {"name": "foof", "factor_interval": 1},
    "eva": {"name": "eva"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learns_the_digits_and_resumes_exactly(name: str) -> None:
    overrides = [*OPTIMIZERS[name], "data.batch_size=32", "schedule=constant"]
    whole, half = parts_of(*overrides), parts_of(*overrides)
    step, losses = TrainStep(whole), []
    for number in range(24):
        if number == 16:
            saved = copy.deepcopy((whole.state.tensors(), whole.state.values(), random_state()))
        step()
        losses.append((whole.state.window[0] / whole.state.window[-1]).item())
        whole.state.window = None
    assert statistics.mean(losses[-5:]) < 0.8 * statistics.mean(losses[:5])
    half.state.load(*saved[:2])
    set_random_state(saved[2])
    step = TrainStep(half)
    for _ in range(8):
        step()
    assert all(map(torch.equal, parameters(whole), parameters(half)))


def test_adahessian_trains_attention_in_micro_batches() -> None:
    gpt = ["data=synthetic_tokens", "data.context_length=8", "model=gpt", "model.width=16", "model.heads=2"]
    parts = parts_of("optimizer=adahessian", *gpt, "data.batch_size=8", "loop.accumulate=2", "precision=bf16")
    step = TrainStep(parts)
    for _ in range(2):
        step()
    assert all(state["exp_hessian_diag_sq"].any() for state in parts.state.optimizer.state.values())


@pytest.mark.parametrize("name", LAYERWISE)
def test_micro_batches_and_a_loss_scale_change_nothing(name: str) -> None:
    models = [network() for _ in range(3)]
    plain, split, scaled = (build(model, **LAYERWISE[name]) for model in models)
    scaled.grad_scaler = scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for seed in range(5):
        take_step(models[0], plain, seed)
        take_step(models[1], split, seed, parts=3)
        step, scaled.step = scaled.step, lambda: None
        take_step(models[2], scaled, seed, scale=4.0)
        scaled.step = step
        for p in models[2].parameters():
            p.grad /= scaler.get_scale()
        scaled.step()
    for a, b, c in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


class Odd(nn.Module):
    """One layer that is taken, and many that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.taken = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.partial = nn.Linear(4, 4)
        self.partial.bias.requires_grad_(False)
        self.wide = nn.Linear(4, 20)
        self.idle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = (
            self.partial(self.norm(self.taken(self.embedding(tokens))))
            + self.wide(self.embedding(tokens))[..., :4]
        )
        return self.head(x + self.grouped(x[..., None, None])[..., 0, 0])


def test_coverage_says_why_a_layer_takes_the_plain_gradient() -> None:
    model, twin = Odd(), Odd()
    twin.load_state_dict(model.state_dict())
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    optimizer = build(model, "kfac", **options, clip_norm=None, largest_factor=16)
    plain = torch.optim.SGD(twin.parameters(), **options)
    tokens = torch.randint(5, (8,))
    for one, its in ((model, optimizer), (twin, plain)):
        one(tokens).square().sum(1).mean().backward()
        its.step()
    sources = {row.parameter: row.source for row in optimizer.coverage()}
    assert sources == {
        "embedding.weight": "none: shared by several modules",
        "taken.weight": "Linear",
        "taken.bias": "Linear",
        "norm.weight": "none: LayerNorm is no Linear or Conv2d",
        "norm.bias": "none: LayerNorm is no Linear or Conv2d",
        "grouped.weight": "none: a convolution with 2 groups",
        "grouped.bias": "none: a convolution with 2 groups",
        "partial.weight": "none: a parameter of its layer is not trained",
        "wide.weight": "none: a side of 20 > largest_factor=16",
        "wide.bias": "none: a side of 20 > largest_factor=16",
        "idle.weight": "Linear",
        "idle.bias": "Linear",
    }
    theirs = dict(twin.named_parameters())
    for name, param in model.named_parameters():
        equal = torch.allclose(param, theirs[name])
        assert equal == (not name.startswith("taken")), name
    tokens = tokens[:4]
    optimizer.zero_grad()
    (model(tokens).sum() + model.idle.weight.sum() + model.idle.bias.sum()).backward()
    optimizer.step()  # a layer that has a gradient and was not called
    sources = {row.parameter: row.source for row in optimizer.coverage()}
    assert sources["idle.weight"] == "none: its layer was not called"


@pytest.mark.parametrize("name", ["kfac", "foof", "eva", "shampoo", "adahessian"])
@pytest.mark.filterwarnings("ignore:Using backward")
def test_offers_the_trainer_its_curvature(name: str) -> None:
    model = network()
    optimizer = build(model, name)
    take_step(model, optimizer)
    assert isinstance(optimizer, CurvatureOptimizer)
    assert isinstance(optimizer, ReadsLossScale) == (name != "shampoo")
    assert not isinstance(optimizer, DiagonalPreconditioner)
    diagnostics = optimizer.diagnostics()
    taken = {row.parameter for row in optimizer.coverage() if not row.source.startswith("none")}
    assert diagnostics.keys() == taken
    assert all(0 < numbers["update_ratio"] < float("inf") for numbers in diagnostics.values())
    assert all(0 <= numbers["share"] < 1 for numbers in diagnostics.values() if "share" in numbers)
    weight = model[6].weight
    layout = optimizer.state_layout(weight)
    assert layout.keys() == optimizer.state[weight].keys()
    assert any(layout[key].is_factor for key in layout)


def test_factors_are_float32_whatever_the_parameters_are_and_stay_so() -> None:
    def half() -> tuple[nn.Module, Any]:
        model = network().bfloat16()
        return model, build(model, "kfac", clip_norm=0.1)

    model, optimizer = half()
    again, loaded = half()
    for _ in range(2):
        x = torch.randn(4, 2, 5, 5, dtype=torch.bfloat16)
        optimizer.zero_grad()
        model(x).float().square().mean().backward()
        optimizer.step()
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        for key, value in optimizer.state[ours].items():
            other = loaded.state[theirs][key]
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype
                assert torch.equal(value, other)
    assert optimizer.state[model[6].weight]["A_inverse"].dtype == torch.float32
    assert loaded.steps == 2
    assert not loaded.needs_refresh


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = network()
    saved = build(model, "foof").state_dict()
    with pytest.raises(ValueError, match=r"^The loaded state has no G of shape \(3, 3\) for 0.weight$"):
        build(model, "kfac").load_state_dict(saved)


@pytest.mark.parametrize("name", ["kfac", "foof", "eva", "shampoo", "adahessian"])
def test_sharded_parameters_are_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("preconditioned_sgd", "adahessian"):
        monkeypatch.setattr(f"trainer.optim.kronecker.{module}.is_sharded", lambda groups: True)
    with pytest.raises(ConfigError, match=rf"^optimizer={name} .*: use parallel=(ddp|none)$"):
        build(network(), name)
