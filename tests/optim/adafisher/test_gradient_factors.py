"""Factors that come from the gradient of a parameter whose rows nobody saw."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from tests.distributed.ranks import on_ranks
from trainer.optim.adafisher import AdaFisher
from trainer.optim.adafisher.views import gradient_factors, gradient_means, scale_view


class Experts(nn.Module):
    """Weights of three experts in one parameter, of which a batch uses two."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x @ self.weights[i].T for i in (0, 2)])


def test_each_matrix_of_a_stack_has_rows_and_columns_of_its_own() -> None:
    torch.manual_seed(0)
    model = Experts()
    optimizer = AdaFisher(model, rule="calibrated", capture="gradient", damping=0.1)
    before = model.weights.detach().clone()
    model(torch.randn(7, 4, dtype=torch.float64)).cos().sum().backward()
    assert model.weights.grad is not None
    square = model.weights.grad.square()
    optimizer.step()

    expected = []
    for expert in square:  # row mean times column mean over the mean; an expert without rows has no gradient
        outer = torch.outer(expert.mean(1), expert.mean(0))
        expected.append(outer / expert.mean() if expert.any() else outer)
    F = torch.stack(expected)
    state = optimizer.state[model.weights]
    torch.testing.assert_close(state["S"].view(3, 5), square.mean(2))
    torch.testing.assert_close(
        optimizer.preconditioner(model.weights), F / (state["S"].mean() * state["H"].mean()) + 0.1
    )
    torch.testing.assert_close(model.weights[1].detach(), (1 - 1e-4) * before[1])  # but for weight decay
    assert not torch.equal(before[0], model.weights[0])


class Own(nn.Conv1d):
    """With a forward of its own, which hides its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(("make", "capture"), [(Own, "hooks"), (nn.Conv1d, "gradient")])
def test_three_axes_of_a_convolution_are_one_matrix(make: type[nn.Conv1d], capture: Any) -> None:
    """As of one with a second dimension that is 1."""
    torch.manual_seed(0)
    narrow, wide = make(5, 6, 3, bias=False).double(), nn.Conv2d(5, 6, (1, 3), bias=False).double()
    wide.weight.data.copy_(narrow.weight.detach()[:, :, None])
    a, b = AdaFisher(narrow, capture=capture), AdaFisher(wide, capture="gradient")
    for _ in range(3):
        x = torch.randn(4, 5, 9, dtype=torch.float64)
        narrow(x).sin().sum().backward()
        assert narrow.weight.grad is not None
        wide.weight.grad = narrow.weight.grad[:, :, None].clone()
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad()
    assert [a.state[narrow.weight][key].shape for key in "SH"] == [(6,), (15,)]
    torch.testing.assert_close(narrow.weight, wide.weight[:, :, 0])


def test_a_scale_has_its_squared_gradient() -> None:
    """And not the square of it, as the product of H and S would be if both had it."""
    view = scale_view((4,))
    square = torch.tensor([1.0, 4.0, 9.0, 16.0])
    H, S = gradient_factors(*gradient_means(square, view), view)
    torch.testing.assert_close(H * S, square)


def _trained(ranks: Any) -> list[Tensor]:
    """The experts after some steps on the same batches, sharded if there are ranks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Experts()).double()
    if ranks is not None:
        ranks.start(torch.device("cpu"), timeout=60)
        fully_shard(model)
    optimizer = AdaFisher(model, update_interval=2)
    for seed in range(5):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(7, 4, dtype=torch.float64)).cos().sum().backward()
        optimizer.step()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


@pytest.mark.ranks
def test_a_stack_may_be_sharded() -> None:
    for sharded in on_ranks(2, _trained):
        torch.testing.assert_close(sharded, _trained(None))
