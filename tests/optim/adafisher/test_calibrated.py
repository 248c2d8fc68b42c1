"""The calibrated rule: recorded runs, and the floor under which a gradient is rounding noise."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.optim.adafisher.calibrated_runs import GOLDEN, RUNS, train
from trainer.optim.adafisher import AdaFisher


@pytest.mark.parametrize("run", RUNS)
def test_recorded_runs(run: str) -> None:
    """They were recorded before updates had a floor, which real gradients must not meet."""
    with np.load(GOLDEN) as golden:
        for key, value in train(run).items():
            torch.testing.assert_close(value, torch.from_numpy(golden[f"{run}/{key}"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scales_and_clipping_do_not_meet_the_floor(scale: float, reduction: str) -> None:
    """Every parameter takes steps of full length, whatever the scales of inputs, loss and clipped gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    lr = 1e-3
    optimizer = AdaFisher(model, rule="calibrated", lr=lr, weight_decay=0.0, update_interval=2)
    x, y = scale * torch.randn(256, 20), torch.randint(4, (256,))
    for _ in range(5):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        cross_entropy(model(x), y, reduction=reduction).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()
        for p, old in zip(model.parameters(), before, strict=True):
            assert (p - old).square().mean().sqrt().item() == pytest.approx(0.2 * lr, rel=1e-2)


def noise_steps(model: nn.Module, x: torch.Tensor, bias: torch.Tensor, steps: int = 10) -> float:
    """The mean length of a bias's steps over the full length."""
    optimizer = AdaFisher(model, rule="calibrated", lr=1e-2, weight_decay=0.0, update_interval=4)
    lengths = []
    for step in range(steps):
        before = bias.detach().clone()
        optimizer.zero_grad()
        out = model(x.roll(step, 0))
        out = out if isinstance(out, torch.Tensor) else out[0]
        (out.flatten(1) * torch.linspace(-1, 1, out[0].numel())).square().sum(1).mean().backward()
        optimizer.step()
        lengths.append((bias - before).square().mean().sqrt().item() / (0.2 * 1e-2))
    return sum(lengths) / steps


def test_biases_without_a_gradient_stay() -> None:
    """A constant before a batch norm, and one that a softmax over keys does not see, in float32."""
    torch.manual_seed(0)
    convnet = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5))
    assert noise_steps(convnet, torch.randn(32, 3, 12, 12), convnet[0].bias) < 0.1
    assert noise_steps(convnet, torch.randn(32, 3, 12, 12), convnet[4].bias) == pytest.approx(1, rel=1e-3)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.query(x) @ self.key(x).mT
            return scores.softmax(-1) @ self.value(x)

    attention = Attention()
    assert noise_steps(attention, torch.randn(16, 6, 8), attention.key.bias) < 0.1
    assert noise_steps(attention, torch.randn(16, 6, 8), attention.query.bias) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("at", "factor"), [("inputs", 1e20), ("loss", 1e21)])
def test_factors_that_overflow_do_not_stay(at: str, factor: float) -> None:
    """A finite loss with a finite gradient whose factors are squares beyond the range of float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = AdaFisher(model, rule="calibrated", lr=1e-3, update_interval=1)
    x = torch.randn(32, 8)
    losses = []
    for step in range(6):
        large = factor if step == 3 else 1.0
        optimizer.zero_grad()
        with torch.no_grad():
            model[0].weight.div_(large if at == "inputs" else 1.0)
        loss = model(x * large if at == "inputs" else x).square().mean()
        (loss * large if at == "loss" else loss).backward()
        with torch.no_grad():
            model[0].weight.mul_(large if at == "inputs" else 1.0)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 2 * losses[0]
    for state in optimizer.state.values():
        assert all(v.isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))
