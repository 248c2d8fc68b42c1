"""The blocked, compiled and Triton updates against the plain ones."""

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.optim.adafisher import update, update_blocked, update_compiled
from trainer.optim.adafisher.step import by_device

SHAPES = [(40, 30), (7,), (6, 5, 3, 3), (300, 20), ()]
DAMPINGS = [0.1, 0.2, 0.3, 0.4, 0.5]
RATES: dict[str, Any] = {"lr": 0.05, "beta": 0.9, "weight_decay": 0.1}


class Problem:
    """Parameters of several shapes, one with two uses, one in channels-last memory; one with next to no gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.params, self.grads, self.exp_avgs, self.factors = [], [], [], []
        for i, shape in enumerate(SHAPES):
            tensors = [torch.randn(shape, dtype=dtype) for _ in range(3)]
            if len(shape) == 4:
                tensors = [t.to(memory_format=torch.channels_last) for t in tensors]
            if i == 1:
                tensors[1:] = [t * 1e-6 for t in tensors[1:]]
            for values, tensor in zip((self.params, self.grads, self.exp_avgs), tensors, strict=True):
                values.append(tensor)
            H = torch.rand((1, *shape[1:]) if shape else (), dtype=factor_dtype) + 0.1
            S = torch.rand((*shape[:1], *(1,) * len(shape[1:])), dtype=factor_dtype) + 0.1
            self.factors.append([(H, S)] if i != 3 else [(H, S), (S.flip(0), H.flip(1))])
        self.sizes = torch.tensor([param.numel() for param in self.params], dtype=factor_dtype)
        self.expected = torch.tensor([1.0, 2.0, 0.5, 1.0, math.nan], dtype=factor_dtype)

    def lists(self) -> tuple[Any, ...]:
        return self.params, self.grads, self.exp_avgs, self.factors, DAMPINGS

    def results(self) -> list[Tensor]:
        return [*self.params, *self.exp_avgs]


class Triton:
    """The kernels, as the functions of the other variants."""

    def kernels(self, params: Any, exp_avgs: Any, factors: Any, dampings: Any) -> Any:
        from trainer.optim.adafisher.update_triton import Kernels

        return Kernels(params, exp_avgs, factors, dampings)

    def sum_of_squares(self, grads: Any, *lists: Any, beta: float) -> Tensor:
        return self.kernels(grads, *lists).sum_of_squares(grads, beta=beta)

    def normalized_update(self, params: Any, grads: Any, *lists: Any, **options: Any) -> None:
        self.kernels(params, *lists[:-2]).normalized_update(grads, *lists[-2:], **options)

    def bias_corrected_update(self, params: Any, grads: Any, *lists: Any, **options: Any) -> None:
        self.kernels(params, *lists).bias_corrected_update(grads, **options)


@pytest.fixture(params=["blocked", "small blocks", "compiled", "triton"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "small blocks":
        monkeypatch.setattr(update_blocked, "_SMALL", 0)
        monkeypatch.setattr(update_blocked, "_BLOCK", 10)
    if request.param == "triton":
        module = pytest.importorskip(
            "trainer.optim.adafisher.update_triton", reason="Triton is not installed"
        )
        monkeypatch.setattr(module, "_STRETCH", 2048)
        monkeypatch.setattr(module, "_BLOCK", 512)
        return Triton()
    torch.compiler.reset()  # of one function torch compiles few variants, and other tests need some as well
    return update_compiled if request.param == "compiled" else update_blocked


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16])
def problem(request: pytest.FixtureRequest, variant: Any) -> SimpleNamespace:
    if isinstance(variant, Triton) and request.param == torch.float64:
        pytest.skip("the kernels are not for float64")
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[request.param]
    ours = Problem(request.param)
    return SimpleNamespace(
        ours=ours, plain=copy.deepcopy(ours), tolerance={"rtol": tolerance, "atol": tolerance}
    )


@pytest.mark.parametrize("has_sums", [False, True])
def test_normalized_update(variant: Any, problem: SimpleNamespace, has_sums: bool) -> None:
    sums = torch.rand(len(SHAPES), dtype=problem.ours.sizes.dtype) + 0.1 if has_sums else None
    for functions, on in ((variant, problem.ours), (update, problem.plain)):
        functions.normalized_update(*on.lists(), on.sizes, on.expected, sums=sums, **RATES)
    torch.testing.assert_close(problem.ours.results(), problem.plain.results(), **problem.tolerance)


@pytest.mark.parametrize("decoupled", [False, True])
def test_bias_corrected_update(variant: Any, problem: SimpleNamespace, decoupled: bool) -> None:
    corrections = [0.1, 0.2, 0.3, 0.2, 0.1]
    for functions, on in ((variant, problem.ours), (update, problem.plain)):
        functions.bias_corrected_update(*on.lists(), corrections=corrections, decoupled=decoupled, **RATES)
    torch.testing.assert_close(problem.ours.results(), problem.plain.results(), **problem.tolerance)


def test_sum_of_squares(variant: Any, problem: SimpleNamespace) -> None:
    ours, plain = (
        functions.sum_of_squares(*on.lists()[1:], beta=0.9)
        for functions, on in ((variant, problem.ours), (update, problem.plain))
    )
    torch.testing.assert_close(ours.to(plain.dtype), plain, rtol=problem.tolerance["rtol"], atol=0)


@pytest.mark.compile
def test_any_number_of_groups_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch compiles eight variants of a function, unless it is told otherwise."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    update_compiled._compiled.cache_clear()
    for size in range(2, 12):
        grads, exp_avgs = [torch.ones(size)], [torch.zeros(size)]
        found = update_compiled.sum_of_squares(grads, exp_avgs, [[(torch.ones(1),) * 2]], [1.0], beta=0.5)
        torch.testing.assert_close(found, torch.tensor([size * 0.375**2]))
    update_compiled._compiled.cache_clear()


def test_a_group_is_updated_on_each_device_by_itself() -> None:
    devices = {"a": "cpu", "b": "meta", "c": "cpu"}
    tracked: list[Any] = [
        SimpleNamespace(name=name, param=torch.empty(1, device=device)) for name, device in devices.items()
    ]
    assert [[t.name for t in members] for members in by_device(tracked)] == [["a", "c"], ["b"]]
    assert by_device([]) == [[]]


def test_the_plain_update_is_the_formula() -> None:
    """Of one parameter, in other words: a step along u whose root mean square is lr ρ."""
    problem = Problem(torch.float64)
    param, grad, exp_avg, ((H, S),), damping = (values[0] for values in problem.lists())
    before, momentum = param.clone(), exp_avg.clone()
    m = 0.9 * momentum + 0.1 * grad
    u = (0.9 * m + 0.1 * grad) / (S * H + damping)
    lists = [[values[0]] for values in problem.lists()]
    total = update.sum_of_squares(*lists[1:], beta=0.9)
    torch.testing.assert_close(total, u.square().sum()[None])
    size = torch.tensor([param.numel()], dtype=torch.float64)
    update.normalized_update(*lists, size, torch.ones_like(size), **RATES)
    step = before * (1 - 0.05 * 0.1) - param
    torch.testing.assert_close(exp_avg, m)
    torch.testing.assert_close(step / step.norm(), u / u.norm())
    assert step.square().mean().sqrt().item() == pytest.approx(0.05 * 0.2)


def test_floored_rms() -> None:
    """Only what is small against its own expectation, and is not as small as the others, meets the floor."""
    sizes, expected = torch.tensor([4.0, 1, 1, 1, 1]), torch.tensor([1.0, 1, 2, 1e-3, math.nan])
    rms = torch.tensor([0.5, 1e-7, 3.0, 1e-3, 1e-9])
    floor = update.GRADIENT_FLOOR
    found = update.floored_rms(rms.square() * sizes, sizes, expected)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5 * floor, 3.0, 1e-3, 1e-9]))
    clipped = update.floored_rms((1e-5 * rms).square() * sizes, sizes, expected)
    torch.testing.assert_close(clipped, 1e-5 * found)
    unknown = torch.full((5,), math.nan)
    torch.testing.assert_close(update.floored_rms(rms.square() * sizes, sizes, unknown), rms)
    nothing = update.floored_rms(torch.zeros(5), sizes, expected)
    assert (nothing > 0).all()
    assert (nothing < 1e-20).all()
