"""What tells the three rules apart: their defaults, how factors are averaged, how averages precondition."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""H and S of one use of a parameter."""


@dataclass(frozen=True)
class Rule:
    """One of the optimizers that AdaFisher can be.

    Args:
        average: ``average(old, new, gamma, count)`` takes the factor of refresh number ``count`` into the average.
        normalise: H' and S' of all uses of a parameter from the averages of H and S.
    """

    lr: float
    damping: float
    gamma: float
    update_interval: int
    average: Callable[[Tensor, Tensor, float, int], None]
    normalise: Callable[[list[Factors]], list[Factors]]


def _average(old: Tensor, new: Tensor, gamma: float, count: int) -> None:
    """The running mean with weight γ of the old value, corrected so that the first refresh gives the new one."""
    old.lerp_(new, (1 - gamma) / (1 - gamma**count))


def _released_average(old: Tensor, new: Tensor, gamma: float, count: int) -> None:
    """Normalises first, then averages with weights that let the average shrink to γ/100 / (1 − γ/10)."""
    low, high = torch.aminmax(new)
    normalised = ((new - low) / (high - low + 1e-6)).nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)
    old.mul_(gamma / 10).add_(normalised, alpha=gamma / 100)


def _over_mean(averages: list[Factors]) -> list[Factors]:
    """Every H over its mean, and S so that the products of all uses together have mean one."""
    tiny = torch.finfo(averages[0][0].dtype).tiny  # of a layer whose gradient is zero
    means = [(H.mean().clamp_(min=tiny), S.mean().clamp_(min=tiny)) for H, S in averages]
    total = torch.stack([h * s for h, s in means]).sum().clamp_(min=tiny)
    return [(H / h, S / s * (h * s / total)) for (H, S), (h, s) in zip(averages, means, strict=True)]


def _min_max(v: Tensor) -> Tensor:
    """(v − min) / (max − min). A range under 1 % of the maximum is noise about a constant and gives ones."""
    low, high = torch.aminmax(v)
    spread = high - low
    return torch.where(spread <= 0.01 * high, 1.0, (v - low) / spread)


RULES = {
    "calibrated": Rule(
        lr=1e-2, damping=0.01, gamma=0.95, update_interval=10, average=_average, normalise=_over_mean
    ),
    "paper": Rule(
        lr=1e-3,
        damping=1e-3,
        gamma=0.8,
        update_interval=1,
        average=_average,
        normalise=lambda averages: [(_min_max(H), _min_max(S)) for H, S in averages],
    ),
    "released": Rule(
        lr=1e-3,
        damping=1e-3,
        gamma=0.8,
        update_interval=100,
        average=_released_average,
        normalise=lambda averages: averages,
    ),
}
