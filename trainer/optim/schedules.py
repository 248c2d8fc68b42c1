"""Learning-rate schedules as functions of the budget spent, whether that is steps or seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.optim import Optimizer

from trainer.options import Fraction, NonNegative, Positive, Range
from trainer.registry import Registry

Factor = Callable[[float], float]
"""Maps the fraction of the budget spent after the warm-up, 0 to 1, to a factor of the base learning rate."""

DecayShare = Annotated[float, Range(gt=0, le=1)]


@dataclass(frozen=True)
class ScheduleOptions:
    """Options that every schedule's config group has."""

    warmup: NonNegative = 0.0
    """Linear warm-up: a fraction of the budget if below 1, else a number of steps."""


SCHEDULES = Registry("schedule", common=ScheduleOptions, entry_points="trainer.schedules")
"""Schedules by name: ``make(*, options...) -> Factor``."""


class Schedule:
    """Sets the learning rate of each group of an optimizer to its base rate times a factor.

    The rate rises in a straight line during the warm-up, then follows ``factor`` over the rest of the budget.
    It depends on the arguments of ``update`` alone, so a resumed run needs nothing but the base rates.

    Args:
        optimizer: the rates that its groups have now are the base rates.
        factor: the schedule after the warm-up.
        warmup: below 1 a fraction of the budget, else a number of steps, which needs a budget in steps.
    """

    def __init__(self, optimizer: Optimizer, factor: Factor, warmup: float = 0.0) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.warmup = warmup
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def update(self, progress: float, step: int) -> None:
        """Sets the rates for the next step.

        Args:
            progress: fraction of the budget spent so far, 0 <= progress <= 1.
            step: steps done so far.
        """
        factor = self._factor(progress, step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):  # a compiled or captured step reads the rate from this tensor
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def _factor(self, progress: float, step: int) -> float:
        if self.warmup < 1:
            share, rise = self.warmup, progress / self.warmup if self.warmup else 1.0
        else:
            # progress / step is the share of one step: the budget is in steps
            share, rise = self.warmup * progress / step if step else 0.0, (step + 1) / self.warmup
        if rise < 1:
            return rise
        return self.factor(min(1.0, max(0.0, progress - share) / max(1.0 - share, 1e-12)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the base rates, which is all that a resumed run cannot compute."""
        return {"base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the base rates of `state_dict`."""
        self.base_lrs = list(state["base_lrs"])


@SCHEDULES.register("constant")
def constant() -> Factor:
    """The base rate throughout."""
    return lambda progress: 1.0


@SCHEDULES.register("cosine")
def cosine(*, min_factor: Fraction = 0.0) -> Factor:
    """Half a cosine from the base rate to ``min_factor`` of it (SGDR without restarts, arXiv 1608.03983)."""
    return lambda progress: _half_cosine(1.0, min_factor, progress)


@SCHEDULES.register("linear")
def linear(*, min_factor: Fraction = 0.0) -> Factor:
    """A straight line from the base rate to ``min_factor`` of it."""
    return lambda progress: 1 - (1 - min_factor) * progress


@SCHEDULES.register("step")
def step(*, milestones: tuple[Fraction, ...] = (0.5, 0.75), gamma: Positive = 0.1) -> Factor:
    """The rate is multiplied by ``gamma`` at each milestone, a fraction of the budget."""
    return lambda progress: gamma ** sum(progress >= milestone for milestone in milestones)


@SCHEDULES.register("one_cycle")
def one_cycle(
    *, peak: Fraction = 0.3, initial_divisor: Positive = 25.0, final_divisor: Positive = 1e4
) -> Factor:
    """Half a cosine up to the base rate at ``peak``, another one down (super-convergence, arXiv 1708.07120).

    It starts at the base rate / ``initial_divisor`` and ends at that / ``final_divisor``.
    """
    start = 1 / initial_divisor
    end = start / final_divisor

    def factor(progress: float) -> float:
        if progress < peak:
            return _half_cosine(start, 1.0, progress / peak)
        return _half_cosine(1.0, end, (progress - peak) / (1 - peak))

    return factor


@SCHEDULES.register("wsd")
def wsd(*, decay: DecayShare = 0.2, min_factor: Fraction = 0.0) -> Factor:
    """Warm-up, stable, decay (arXiv 2404.06395).

    The base rate, then in the last ``decay`` of the budget a straight line down to ``min_factor`` of it.
    """
    return lambda progress: 1 - (1 - min_factor) * max(0.0, progress - (1 - decay)) / decay


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
