"""Learning-rate schedules as functions of the budget spent, whether that is steps or seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainer.registry import Registry
from trainer.schema import Fraction, NonNegative

Factor = Callable[[float], float]
"""Maps the fraction of the budget spent after the warm-up, 0 to 1, to a factor of the base learning rate."""


@dataclass(frozen=True)
class ScheduleOptions:
    """Options that every schedule's config group has."""

    warmup: NonNegative = 0.0
    """Linear warm-up: a fraction of the budget if below 1, else a number of steps."""


SCHEDULES = Registry("schedule", common=ScheduleOptions)
"""Schedules by name: ``make(*, options...) -> Factor``."""


class Schedule:
    """Sets the learning rate of each of an optimizer's groups to its base rate times a factor.

    The rate rises in a straight line during the warm-up, then follows ``factor`` over the rest of the budget.
    It depends on the arguments of ``update`` alone, so a resumed run needs nothing but the base rates.

    Args:
        optimizer: its groups' present rates are the base rates.
        factor: the schedule after the warm-up.
        warmup: below 1 a fraction of the budget, else a number of steps, which asks for a budget in steps.
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
        return {"base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base_lrs = list(state["base_lrs"])


@SCHEDULES.register("constant")
def constant() -> Factor:
    """The base rate throughout."""
    return lambda progress: 1.0


@SCHEDULES.register("cosine")
def cosine(*, min_factor: Fraction = 0.0) -> Factor:
    """Half a cosine from the base rate to ``min_factor`` of it (SGDR without restarts, arXiv 1608.03983)."""
    return lambda progress: min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2
