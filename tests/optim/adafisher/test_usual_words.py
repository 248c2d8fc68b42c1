"""The words that other optimizers, schedulers and scalers use."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from tests.optim.adafisher.small import Net, backward, batch, everything, same, train
from trainer.optim.adafisher import AdaFisher, AdaFisherW


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": True, "capturable": False, "differentiable": False, "amsgrad": False},
        {"foreach": None, "fused": True},
        {"fused": False},
        {"maximize": False},
    ],
)
def test_words_that_change_nothing_here(options: dict[str, Any]) -> None:
    a_model, b_model = Net(), Net()
    a, b = AdaFisher(a_model), AdaFisherW(b_model, **options)
    train(a_model, a, range(3))
    train(b_model, b, range(3))
    same(everything(a_model, a), everything(b_model, b))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreach": False}, "^AdaFisher does not support foreach=False: it updates all parameters at once$"),
        ({"capturable": True}, "capturable=True: its refreshes cannot be in a CUDA graph"),
        ({"differentiable": True}, "differentiable=True: its steps cannot be differentiated"),
        ({"amsgrad": True}, "amsgrad=True: it has no second moment"),
        ({"betas": (0.9, 0.999)}, r"betas=\(0\.9, 0\.999\): the decay of the momentum is momentum"),
        ({"beta": 0.9}, "beta=0.9: the decay of the momentum is momentum"),
        ({"eps": 1e-8}, "eps=1e-08: what is added to the curvature is damping"),
        ({"learning_rate": 0.1}, "^AdaFisher has no option learning_rate$"),
    ],
)
def test_words_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AdaFisher(Net(), **options)


def test_a_learning_rate_in_the_wrong_place() -> None:
    message = r"second argument is params, but it is 0\.001: AdaFisher\(model, lr=0\.001\)$"
    with pytest.raises(TypeError, match=message):
        AdaFisher(Net(), 1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "orthogonal"},
        {"rule": "paper", "decoupled": True},
        {"rule": "paper", "decoupled": False},
    ],
    ids=["calibrated", "orthogonal", "decoupled", "coupled"],
)
def test_maximize_ascends(options: dict[str, Any]) -> None:
    """As descending on the negative loss, weight decay included."""
    down, up = Net(), Net()
    a = AdaFisher(down, weight_decay=0.1, **options)
    b = AdaFisher(up, weight_decay=0.1, maximize=True, **options)
    for step in range(4):
        x, y = batch(step)
        for model, optimizer, sign in ((down, a, -1), (up, b, 1)):
            optimizer.zero_grad()
            (sign * cross_entropy(model(x), y)).backward()
            optimizer.step()
    for one, other in zip(down.parameters(), up.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("scheduler", [OneCycleLR, CyclicLR])
def test_schedulers_cycle_the_momentum(scheduler: Any) -> None:
    options = (
        {"max_lr": 0.1, "total_steps": 10} if scheduler is OneCycleLR else {"base_lr": 0.01, "max_lr": 0.1}
    )
    model = Net()
    optimizer, sgd = AdaFisher(model), torch.optim.SGD(Net().parameters(), momentum=0.9)
    ours, theirs = (scheduler(o, **options) for o in (optimizer, sgd))
    for step in range(9):
        train(model, optimizer, range(step, step + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SGD does not step
            ours.step()
            theirs.step()
        assert optimizer.param_groups[0]["momentum"] == sgd.param_groups[0]["momentum"]
    assert optimizer.param_groups[0]["momentum"] != 0.9


def test_the_momentum_of_a_group_is_what_a_step_uses() -> None:
    a_model, b_model = Net(), Net()
    a, b = AdaFisher(a_model, momentum=0.5), AdaFisher(b_model)
    b.param_groups[0]["momentum"] = 0.5
    train(a_model, a, range(3))
    train(b_model, b, range(3))
    same(everything(a_model, a), everything(b_model, b))


# Loss scales


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, as accelerate's and Lightning's: what the scaler calls."""

    def __init__(self, inner: AdaFisher) -> None:
        self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}

    def step(self, closure: Any = None) -> None:
        self.inner.step()


def scaled_steps(scaler: torch.amp.GradScaler | None, *, clip: bool, wrap: bool) -> tuple[Net, AdaFisher]:
    """Steps as in torch's recipe for AMP, with a scale that changes by itself."""
    model = Net()
    optimizer = AdaFisher(model, update_interval=1)
    called: Any = Wrapper(optimizer) if wrap else optimizer
    for step in range(4):
        optimizer.zero_grad()
        x, y = batch(step)
        loss = cross_entropy(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
            continue
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(called)
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        scaler.step(called)
        scaler.update()
    return model, optimizer


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
def test_the_scaler_is_found_by_itself(clip: bool, wrap: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    expected, found = (everything(*scaled_steps(s, clip=clip, wrap=wrap)) for s in (None, scaler))
    assert scaler.get_scale() == 2.0**14
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_disabled_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    same(*(everything(*scaled_steps(s, clip=True, wrap=False)) for s in (None, scaler)))


@pytest.mark.parametrize("clip", [False, True])
def test_an_overflow_is_skipped_by_the_scaler(clip: bool) -> None:
    """``step`` is not called, by which accelerate tells that a step was skipped, and Lightning may clip."""
    model = Net()
    optimizer = AdaFisher(model, update_interval=1)
    train(model, optimizer, range(2))
    before, calls = everything(model, optimizer), []
    optimizer.register_step_pre_hook(lambda *args: calls.append("step"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = batch(2)
    optimizer.zero_grad()
    scaler.scale(cross_entropy(model(x), y) * float("inf")).backward()
    if clip:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert not calls
    same(before, everything(model, optimizer))
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)  # by which Lightning forbids clipping
    optimizer.zero_grad()
    scaler.scale(cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert all(value.isfinite().all() for value in everything(model, optimizer).values())


def test_a_scaler_that_is_told() -> None:
    """Where the user unscales and calls ``step`` himself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    told, plain = Net(), Net()
    a, b = AdaFisher(told), AdaFisher(plain)
    a.grad_scaler = scaler
    x, y = batch(0)
    scaler.scale(cross_entropy(told(x), y)).backward()
    scaler.unscale_(a)
    a.step()
    backward(plain, 0)
    b.step()
    S: list[Tensor] = [o.state[m.head.weight]["S"] for o, m in ((a, told), (b, plain))]
    torch.testing.assert_close(*S)
