"""The registry of optimizers, and torch's own in it."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.optim.groups import OptimizerOptions
from trainer.registry import Registry
from trainer.schema import Fraction, NonNegative, Positive

OPTIMIZERS = Registry("optimizer", common=OptimizerOptions, entry_points="trainer.optimizers")
"""Optimizers by name: ``make(model, params, *, options...)``, params being what ``groups.param_groups`` gives.
An attribute ``needs_create_graph`` of what is made asks for gradients that can be differentiated again."""

Groups = list[dict[str, Any]]

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def _fused(groups: Groups, fused: bool | None) -> bool:
    """Whether to update all parameters in one kernel; None means wherever torch has one."""
    if fused is None:
        return all(p.device.type in _FUSED_DEVICES for group in groups for _, p in group["params"])
    return fused


@OPTIMIZERS.register("sgd")
def sgd(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 0.1,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    fused: bool | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum: ``torch.optim.SGD``."""
    return torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
        fused=_fused(params, fused),
    )


@OPTIMIZERS.register("adamw")
def adamw(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
    fused: bool | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay: ``torch.optim.AdamW``."""
    return torch.optim.AdamW(
        params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=_fused(params, fused)
    )
