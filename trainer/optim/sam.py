"""Sharpness-aware minimization (SAM, arXiv 2010.01412) of SGD and AdamW.

The gradient of a step is that at ``w + ρ g / |g|``, g the gradient at w: of the weights near by that are worst to first
order. A step costs two forward and backward passes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed.dtensor import local_tensor
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.options import Fraction, NonNegative, Positive

TINY = 1e-12
"""Added to the norm, which may be zero."""


class Climbing(Optimizer):
    """What SAM adds to an optimizer, as a base class before that of torch. It keeps no state between steps."""

    rho: float
    """How far away the gradient is taken, >= 0."""

    @torch.no_grad()
    def climb(self, norm: float) -> None:
        """Moves the parameters along their gradients to the distance ``rho``."""
        self._places: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    here = local_tensor(parameter)
                    self._places.append((here, here.clone()))
                    here.add_(local_tensor(parameter.grad), alpha=self.rho / (norm + TINY))

    @torch.no_grad()
    def descend(self) -> None:
        """Moves them back."""
        for here, place in self._places:
            here.copy_(place)
        self._places = []


class ClimbingSGD(Climbing, torch.optim.SGD):
    """SAM of SGD."""


class ClimbingAdamW(Climbing, torch.optim.AdamW):
    """SAM of AdamW."""


def climbing(kind: Any, params: Groups, rho: float, **options: Any) -> Optimizer:
    """An optimizer of one of the classes above."""
    optimizer: Climbing = kind(params, **options)
    optimizer.rho = rho
    return optimizer


@OPTIMIZERS.register("sam_sgd")
def sam_sgd(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 0.1,
    rho: NonNegative = 0.05,
    momentum: Fraction = 0.9,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """SAM of SGD; its options are SGD's, and how far away the gradient is taken."""
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    return climbing(ClimbingSGD, params, rho, **options)


@OPTIMIZERS.register("sam_adamw")
def sam_adamw(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1e-3,
    rho: NonNegative = 0.05,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> Optimizer:
    """SAM of AdamW; its options are AdamW's, and how far away the gradient is taken."""
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return climbing(ClimbingAdamW, params, rho, **options)
