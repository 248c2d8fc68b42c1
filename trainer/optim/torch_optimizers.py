"""The registry of optimizers, with AdaFisher and torch's own in it."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed.dtensor import is_dtensor
from trainer.errors import ConfigError
from trainer.optim.adafisher import AdaFisher, AdaFisherW
from trainer.optim.muon import MuonAdamW, split_matrices
from trainer.optim.param_groups import OptimizerOptions
from trainer.options import Count, Fraction, NonNegative, Positive
from trainer.registry import Registry

OPTIMIZERS = Registry("optimizer", common=OptimizerOptions, entry_points="trainer.optimizers")
"""Optimizers by name: ``make(model, params, *, options...)``, params as ``groups.param_groups`` gives them.
What they may offer besides is in `trainer.optim.protocols`."""

Groups = list[dict[str, Any]]
Rule = Literal["calibrated", "paper", "released"]
Capture = Literal["hooks", "gradient"]

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def _fused(groups: Groups, fused: bool | None) -> bool | None:
    """Whether to update all parameters in one kernel. None becomes True where torch has one."""
    if fused is None and all(p.device.type in _FUSED_DEVICES for _, p in _parameters(groups)):
        return True
    return fused


def _sharded(groups: Groups) -> bool:
    return any(is_dtensor(p) for _, p in _parameters(groups))


def _parameters(groups: Groups) -> Iterator[tuple[str, Tensor]]:
    return (named for group in groups for named in group["params"])


@OPTIMIZERS.register("adafisher")
def adafisher(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative | None = None,
    beta: Fraction = 0.9,
    damping: Positive | None = None,
    gamma: Fraction | None = None,
    weight_decay: NonNegative | None = None,
    decoupled: bool | None = None,
    rule: Rule = "calibrated",
    update_interval: Count | None = None,
    capture: Capture = "hooks",
    fused: Literal["compile"] | None = None,
) -> Optimizer:
    """``trainer.optim.AdaFisher``; None is the default of the rule."""
    if rule == "calibrated" and decoupled is False:
        raise ConfigError("optimizer.decoupled=false is wrong: rule=calibrated always decouples weight decay")
    return AdaFisher(
        model,
        params,
        lr=lr,
        beta=beta,
        damping=damping,
        gamma=gamma,
        weight_decay=weight_decay,
        decoupled=decoupled,
        rule=rule,
        update_interval=update_interval,
        capture=capture,
        fused=fused,
    )


@OPTIMIZERS.register("adafisherw")
def adafisherw(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative | None = None,
    beta: Fraction = 0.9,
    damping: Positive | None = None,
    gamma: Fraction | None = None,
    weight_decay: NonNegative | None = None,
    rule: Rule = "calibrated",
    update_interval: Count | None = None,
    capture: Capture = "hooks",
    fused: Literal["compile"] | None = None,
) -> Optimizer:
    """``trainer.optim.AdaFisherW``: weight decay is decoupled; None is the default of the rule."""
    return AdaFisherW(
        model,
        params,
        lr=lr,
        beta=beta,
        damping=damping,
        gamma=gamma,
        weight_decay=weight_decay,
        rule=rule,
        update_interval=update_interval,
        capture=capture,
        fused=fused,
    )


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
        nesterov=nesterov and momentum > 0,  # without momentum there is nothing to look along
        weight_decay=weight_decay,
        fused=fused if _sharded(params) else _fused(params, fused),  # torch's kernel takes no DTensors
    )


@OPTIMIZERS.register("adam")
def adam(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    fused: bool | None = None,
) -> Optimizer:
    """Adam, with weight decay added to the gradient: ``torch.optim.Adam``."""
    return torch.optim.Adam(
        params,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
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
    amsgrad: bool = False,
    fused: bool | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay: ``torch.optim.AdamW``."""
    return torch.optim.AdamW(
        params,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=_fused(params, fused),
    )


@OPTIMIZERS.register("nadam")
def nadam(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 2e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled: bool = True,
) -> Optimizer:
    """Adam with Nesterov's momentum: ``torch.optim.NAdam``."""
    return torch.optim.NAdam(
        params,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        decoupled_weight_decay=decoupled,
    )


@OPTIMIZERS.register("adafactor")
def adafactor(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1e-2,
    beta2_decay: float = -0.8,
    clip_threshold: Positive = 1.0,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Adam's step from row and column means of the squared gradient: ``torch.optim.Adafactor``.

    Raises:
        ConfigError: the parameters are sharded.
    """
    if _sharded(params):
        raise ConfigError("optimizer=adafactor cannot update sharded parameters: use parallel=ddp")
    return torch.optim.Adafactor(
        params, lr=lr, beta2_decay=beta2_decay, d=clip_threshold, weight_decay=weight_decay
    )


@OPTIMIZERS.register("muon")
def muon(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1e-2,
    momentum: Fraction = 0.95,
    nesterov: bool = True,
    ns_steps: Count = 5,
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    adamw_lr: NonNegative = 3e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.95),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.1,
    fused: bool | None = None,
) -> Optimizer:
    """Muon for the hidden matrices, AdamW for the rest: ``torch.optim.Muon`` and ``torch.optim.AdamW``."""
    return MuonAdamW(
        split_matrices(model, params),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        adamw_lr=adamw_lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        fused=_fused(params, fused),
    )
