"""What tells the three rules apart: their defaults, how factors are averaged, how averages precondition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""H and S of one use of a parameter."""


class Vectors:
    """Vectors side by side in one tensor, ``flat``, so that one operation works on all of them.

    Args:
        sizes: elements of each.
        counts: how many of them in a row each parameter has.
    """

    def __init__(
        self, sizes: Sequence[int], counts: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.flat = torch.empty(sum(sizes), device=device, dtype=dtype)
        self.parts = self.flat.split(list(sizes))
        self.sizes, self.counts = (torch.tensor(numbers, device=device) for numbers in (sizes, counts))
        self.single = all(count == 1 for count in counts)

    def reduce(self, how: str) -> Tensor:
        """``mean``, ``min`` or ``max`` of each, [vectors]."""
        return torch.segment_reduce(self.flat, how, lengths=self.sizes, unsafe=True)

    def spread(self, values: Tensor) -> Tensor:
        """Of a value of each, one for each of its elements."""
        return values.repeat_interleave(self.sizes, output_size=len(self.flat))

    def sum_of_param(self, values: Tensor) -> Tensor:
        """The sum of a value of each over the vectors of the same parameter, for each of them."""
        if self.single:
            return values
        sums = torch.segment_reduce(values, "sum", lengths=self.counts, unsafe=True)
        return sums.repeat_interleave(self.counts, output_size=len(values))


@dataclass(frozen=True)
class Rule:
    """One of the optimizers that AdaFisher can be.

    Args:
        average: ``average(olds, news, gamma, count)`` takes factors of refresh number ``count`` into their averages.
        normalise: makes H' and S' of the averages of H and S, in place.
    """

    lr: float
    damping: float
    gamma: float
    update_interval: int
    average: Callable[[list[Tensor], list[Tensor], float, int], None]
    normalise: Callable[[Vectors, Vectors], None]


def _average(olds: list[Tensor], news: list[Tensor], gamma: float, count: int) -> None:
    """The running mean with weight γ of the old value, corrected so that the first refresh gives the new one."""
    torch._foreach_lerp_(olds, news, (1 - gamma) / (1 - gamma**count))


def _released_average(olds: list[Tensor], news: list[Tensor], gamma: float, count: int) -> None:
    """Normalises first, then averages with weights that let the average shrink to γ/100 / (1 − γ/10)."""
    for old, new in zip(olds, news, strict=True):
        low, high = torch.aminmax(new)
        normalised = ((new - low) / (high - low + 1e-6)).nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)
        old.mul_(gamma / 10).add_(normalised, alpha=gamma / 100)


def _over_mean(H: Vectors, S: Vectors) -> None:
    """Every H over its mean, and S so that the products of all uses of a parameter together have mean one."""
    tiny = torch.finfo(H.flat.dtype).tiny  # of a layer whose gradient is zero
    h, s = (vectors.reduce("mean").clamp_(min=tiny) for vectors in (H, S))
    share = h * s / S.sum_of_param(h * s).clamp_(min=tiny)
    H.flat.div_(H.spread(h))
    S.flat.div_(S.spread(s)).mul_(S.spread(share))


def _min_max(H: Vectors, S: Vectors) -> None:
    """(v − min) / (max − min). A range under 1 % of the maximum is noise about a constant and gives ones."""
    for vectors in (H, S):
        low, high = vectors.reduce("min"), vectors.reduce("max")
        width = high - low
        scaled = (vectors.flat - vectors.spread(low)).div_(vectors.spread(width))
        vectors.flat.copy_(torch.where(vectors.spread(width <= 0.01 * high), 1.0, scaled))


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
        normalise=_min_max,
    ),
    "released": Rule(
        lr=1e-3,
        damping=1e-3,
        gamma=0.8,
        update_interval=100,
        average=_released_average,
        normalise=lambda H, S: None,
    ),
}
