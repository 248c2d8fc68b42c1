"""What every optimizer of torch does, in the order of torch's own list of tests, and usual test problems.

Of torch's list these do not apply: variants (``foreach``, ``fused``, ``capturable``, ``differentiable``) against the
plain loop, since there is one update (`test_update.py` and `test_triton.py` hold its forms against each other); several
devices and their memory (`tests/gpu/`); sparse gradients and complex parameters, which are refused; L-BFGS's returns.
"""

import copy
import gc
import io
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from trainer.optim import AdaFisher

CAPTURES = ("hooks", "gradient")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)
    return nn.functional.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()


def trained(steps: int = 3, **options: Any) -> tuple[nn.Sequential, AdaFisher]:
    model = network()
    optimizer = AdaFisher(model, **options)
    train(model, optimizer, steps)
    return model, optimizer


def snapshot(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# Construction ---------------------------------------------------------------------------------------------------


def test_what_no_optimizer_takes() -> None:
    model = network()
    with pytest.raises(ValueError, match="empty parameter list"):
        AdaFisher(model, [])
    with pytest.raises(ValueError, match="more than one parameter group"):
        AdaFisher(model, [{"params": [model[0].weight]}, {"params": [model[0].weight]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        AdaFisher(model, [model[0].weight, model[0].weight])
    with pytest.raises(TypeError, match="should be an iterable"):
        AdaFisher(model, model[0].weight)
    with pytest.raises(ValueError, match="not one of the model's"):
        AdaFisher(model, [model[0].weight * 2])
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        AdaFisher(model, lr=torch.tensor([0.1, 0.2]))


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="complex parameters: weight"):
        AdaFisher(nn.Linear(2, 2, dtype=torch.complex64))
    model = nn.Embedding(4, 3, sparse=True)
    optimizer = AdaFisher(model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


def test_printing() -> None:
    optimizer = AdaFisher(network(), lr=0.25)
    assert repr(optimizer).startswith("AdaFisher (")
    assert "lr: 0.25" in repr(optimizer)
    assert set(optimizer.defaults) <= set(optimizer.param_groups[0])


# The direction of a step ----------------------------------------------------------------------------------------

EVERY_SCHEDULER: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "step": lambda o: schedulers.StepLR(o, 5),
    "multistep": lambda o: schedulers.MultiStepLR(o, [5, 10]),
    "linear": lambda o: schedulers.LinearLR(o),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 30),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 30),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 7),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o),
    "one_cycle": lambda o: schedulers.OneCycleLR(o, 0.05, 30),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.05),
    "swa": lambda o: SWALR(o, 0.005),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.CosineAnnealingLR(o, 20)], [5]
    ),
}


@pytest.mark.parametrize("name", EVERY_SCHEDULER)
def test_every_scheduler(name: str) -> None:
    model = network()
    optimizer = AdaFisher(
        model, [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.02}]
    )
    scheduler = EVERY_SCHEDULER[name](optimizer)
    first = loss_of(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        scheduler.step(*[loss.item()] if name == "plateau" else [])
    assert loss_of(model).item() < first
    assert optimizer.param_groups[0]["lr"] != 0.01 or name == "plateau"


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("rule", ["calibrated", "orthogonal", "paper", "released"])
def test_parameters_that_are_not_contiguous(rule: Any, capture: Any) -> None:
    model = network()
    for layer in (model[0], model[3]):
        spread = torch.stack([layer.weight.detach()] * 2, -1)[..., 0]
        layer.weight = nn.Parameter(spread)
        assert not layer.weight.is_contiguous()
    optimizer = AdaFisher(model, rule=rule, capture=capture)
    first = loss_of(model).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < first


@pytest.mark.parametrize("lr", [torch.tensor(2.0**-6), torch.tensor([2.0**-6])])
def test_a_learning_rate_in_a_tensor(lr: Tensor) -> None:
    model, _ = trained(5, lr=2.0**-6)
    of_tensor, optimizer = trained(5, lr=lr)
    torch.testing.assert_close(snapshot(model), snapshot(of_tensor))
    optimizer.param_groups[0]["lr"].fill_(0)
    before = snapshot(of_tensor)
    train(of_tensor, optimizer, 1)
    assert_same(snapshot(of_tensor), before)


# Groups ---------------------------------------------------------------------------------------------------------


def test_groups_have_rates_and_decays_of_their_own() -> None:
    model = network()
    optimizer = AdaFisher(
        model,
        [
            {"params": model[0].parameters(), "lr": 0.0},
            {"params": model[3].parameters(), "weight_decay": 0.5},
            {"params": model[1].parameters(), "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_of(model).backward()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        shrink = 1 - 0.1 * 0.5 if name.startswith("3.") else 1.0
        torch.testing.assert_close(param.detach(), shrink * before[name])


def test_groups_are_as_good_as_several_optimizers() -> None:
    together, apart = network(), network()
    optimizer = AdaFisher(
        together,
        [{"params": together[i].parameters(), "lr": lr} for i, lr in ((0, 0.01), (1, 0.02), (3, 0.03))],
    )
    several = [AdaFisher(apart, apart[i].parameters(), lr=lr) for i, lr in ((0, 0.01), (1, 0.02), (3, 0.03))]
    for seed in range(12):
        train(together, optimizer, 1, seed)
        for one in several:
            one.zero_grad()
        loss_of(apart, seed).backward()
        for one in several:
            one.step()
    assert_same(snapshot(together), snapshot(apart))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_optimizers_of_one_model_go_in_any_order(order: tuple[int, ...]) -> None:
    model = network()
    optimizers = {i: AdaFisher(model) for i in range(3)}
    before = dict(vars(network()[0]))
    for i in order:
        del optimizers[i]
        gc.collect()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss_of(model).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            assert optimizer.coverage()[0].source == "Linear"
            assert optimizer.state[model[0].weight]["captured"]
    assert vars(model[0]).keys() == before.keys()


# Steps without gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_step_without_gradients_changes_nothing(capture: Any) -> None:
    model, optimizer = trained(3, capture=capture)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(12):
        optimizer.zero_grad()
        optimizer.step()
    assert_same(snapshot(model), before)
    assert_same(optimizer.state_dict()["state"], state)


def test_parameters_that_need_no_gradient_stay() -> None:
    model = network().requires_grad_(False)
    before = snapshot(model)
    optimizer = AdaFisher(model, capture="gradient")
    assert optimizer.step(lambda: torch.tensor([1.0])) == 1
    assert_same(snapshot(model), before)
    assert not optimizer.state


@pytest.mark.parametrize("capture", CAPTURES)
def test_zero_gradients_change_nothing_but_by_decay(capture: Any) -> None:
    model = network()
    optimizer = AdaFisher(model, capture=capture, weight_decay=0.0)
    before = snapshot(model)
    for _ in range(3):
        optimizer.zero_grad()
        (0 * loss_of(model)).backward()
        optimizer.step()
    assert_same(snapshot(model), before)
    train(model, optimizer, 2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_gradients_are_not_changed() -> None:
    model, optimizer = trained(1)
    for seed in range(1, 13):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        grads = [p.grad for p in model.parameters()]
        copies = copy.deepcopy(grads)
        optimizer.step()
        assert_same(grads, copies)
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_zero_grad() -> None:
    model, optimizer = trained(1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    model = network()
    optimizer = AdaFisher(model)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


# State dicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("to_names", [True, False])
@pytest.mark.parametrize("from_names", [True, False])
def test_state_goes_to_an_optimizer_of_equal_parameters(
    from_names: bool, to_names: bool, capture: Any
) -> None:
    model, twin = network(), network()

    def params(of: nn.Module, with_names: bool) -> Iterator[Any]:
        return of.named_parameters() if with_names else of.parameters()

    optimizer = AdaFisher(model, params(model, from_names), capture=capture)
    train(model, optimizer, 3)
    other = AdaFisher(twin, params(twin, to_names), capture=capture)
    twin.load_state_dict(model.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    given = copy.deepcopy(saved)
    other.load_state_dict(given)
    assert_same(given["state"], saved["state"])
    train(model, optimizer, 12, 3)
    train(twin, other, 12, 3)
    assert_same(snapshot(model), snapshot(twin))
    assert_same(optimizer.state_dict()["state"], other.state_dict()["state"])
    if from_names or to_names:
        assert other.state_dict()["param_groups"][0]["param_names"] == [
            n for n, _ in model.named_parameters()
        ]


def test_files_are_read_with_weights_only() -> None:
    _, optimizer = trained()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same(loaded["state"], optimizer.state_dict()["state"])
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_step_that_is_a_number() -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    optimizer.load_state_dict(saved)
    train(model, optimizer, 2, 3)
    assert all(state["step"] == 5 for state in optimizer.state.values())


def test_a_state_dict_from_before_an_option_was_there() -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["gamma"]
    optimizer.load_state_dict(saved)
    train(model, optimizer, 10, 3)
    assert optimizer.param_groups[0]["gamma"] == optimizer.defaults["gamma"]


def test_state_is_cast_to_the_parameters() -> None:
    _, optimizer = trained()
    half = network().bfloat16()
    other = AdaFisher(half)
    other.load_state_dict(optimizer.state_dict())
    state = other.state[half[0].weight]
    assert (state["exp_avg"].dtype, state["H"].dtype, state["step"].dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


def test_copies_have_all_public_attributes() -> None:
    _, optimizer = trained()

    def public(of: AdaFisher) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert public(copy.deepcopy(optimizer)) >= public(optimizer)


def test_state_is_there_and_not_empty() -> None:
    model, optimizer = trained()
    assert set(optimizer.state) == set(model.parameters())
    assert all(state for state in optimizer.state.values())


# Hooks ----------------------------------------------------------------------------------------------------------


def test_hooks_around_a_step() -> None:
    model, optimizer = trained(1)
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
    ]
    train(model, optimizer, 2)
    for handle in handles:
        handle.remove()
    train(model, optimizer, 1)
    assert seen == 2 * ["global pre", "pre", "post", "global post"]


def test_a_hook_before_the_step_may_change_gradients() -> None:
    """And the step of one that removes them all is none."""
    model, optimizer = trained(1, weight_decay=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: [setattr(p, "grad", None) for p in model.parameters()] and None
    )
    before = snapshot(model)
    train(model, optimizer, 1)
    assert_same(snapshot(model), before)


def test_hooks_around_state_dicts() -> None:
    _, optimizer = trained(1)
    seen: list[str] = []

    def changed(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "note": 1}

    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(changed)
    saved = optimizer.state_dict()
    assert saved["note"] == 1
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("after loading"))
    optimizer.load_state_dict(saved)
    assert seen == ["before saving", "after loading"]


def test_hooks_before_loading() -> None:
    _, optimizer = trained(1)

    def in_place(_: Any, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0]["lr"] = 0.002

    optimizer.register_load_state_dict_pre_hook(in_place)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.002


def test_a_hook_before_loading_may_return_another_dict() -> None:
    model, optimizer = trained(3)
    torn = {"wrapped": copy.deepcopy(optimizer.state_dict())}
    optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: state_dict["wrapped"])
    train(model, optimizer, 2, 3)
    optimizer.load_state_dict(torn)
    assert all(state["step"] == 3 for state in optimizer.state.values())


def test_a_profile_names_the_step() -> None:
    model, optimizer = trained(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 1)
    assert "Optimizer.step#AdaFisher.step" in {event.key for event in profile.key_averages()}


# Averages of weights --------------------------------------------------------------------------------------------


def test_stochastic_weight_averaging() -> None:
    model = network()
    optimizer = AdaFisher(model)
    scheduler = SWALR(optimizer, swa_lr=0.005, anneal_epochs=3)
    average = AveragedModel(model)
    snapshots = []
    for seed in range(6):
        train(model, optimizer, 1, seed)
        average.update_parameters(model)
        scheduler.step()
        snapshots.append(snapshot(model))
    means = [torch.stack(params).mean(0) for params in zip(*snapshots, strict=True)]
    torch.testing.assert_close(snapshot(average), means)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update_bn([torch.randn(8, 5) for _ in range(3)], average)
    assert average.module[1].num_batches_tracked == 3
    train(model, optimizer, 6, 6)  # the batches of the averaged model are not taken for the model's
    assert all(p.isfinite().all() for p in model.parameters())


# Usual test problems, of torch, timm and pytorch-optimizer ------------------------------------------------------


class Point(nn.Module):
    """A point in a landscape, which has no layer."""

    def __init__(self, *at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def descend(self, landscape: Callable[..., Tensor], lr: float, steps: int, **options: Any) -> float:
        """The height after so many steps of a length that falls to zero."""
        optimizer = AdaFisher(self, lr=lr, weight_decay=0.0, **options)
        scheduler = schedulers.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            landscape(*self.at).backward()
            optimizer.step()
            scheduler.step()
        return landscape(*self.at).item()


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def ill_conditioned(*xs: Tensor) -> Tensor:
    return sum((10.0**i * x**2 for i, x in enumerate(xs)), start=torch.zeros(()))


@pytest.mark.parametrize(
    ("landscape", "start", "lr", "steps", "low"),
    [
        (rosenbrock, (1.5, 1.5), 0.1, 500, 1e-2),
        (beale, (-3.5, -2.5), 0.3, 200, 1e-2),
        (ill_conditioned, (1.0, 1.0, 1.0, 1.0), 0.1, 300, 1e-6),
    ],
)
def test_landscapes(
    landscape: Callable[..., Tensor], start: tuple[float, ...], lr: float, steps: int, low: float
) -> None:
    point = Point(*start)
    first = landscape(*point.at).item()
    assert point.descend(landscape, lr, steps) < min(low, first)


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("rule", ["calibrated", "orthogonal", "paper", "released"])
def test_logistic_regression(rule: Any, capture: Any) -> None:
    """Two clouds of points, told apart by one layer."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(64, 2) + 2, torch.randn(64, 2) - 2])
    y = torch.cat([torch.zeros(64), torch.ones(64)])
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    optimizer = AdaFisher(
        model, rule=rule, capture=capture, lr=0.1 if rule in ("calibrated", "orthogonal") else 0.01
    )
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert math.isfinite(losses[-1])


@pytest.mark.parametrize("capture", CAPTURES)
def test_exclusive_or(capture: Any) -> None:
    """Four points that no linear layer can tell apart."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([0, 1, 1, 0])
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = AdaFisher(model, capture=capture, lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert torch.equal(model(x).argmax(1), y)
