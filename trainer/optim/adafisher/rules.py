"""The rules: defaults, known layers, how factors are averaged, how averages precondition, how a step is taken.

A new rule is an entry of `RULES`, its name in `RuleName`, and the functions that it needs.
"""

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ._torch_private import foreach_lerp_
from .convolutions import POOLED_CONVOLUTIONS
from .layers import LAYERS, LayerTypes
from .released_layers import RELEASED_LAYERS
from .vectors import Vectors

RuleName = Literal["calibrated", "orthogonal", "paper", "released"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything in which one rule differs from another.

    Args:
        lr, damping, gamma, update_interval: defaults of these options.
        weight_decay, decoupled_weight_decay: defaults of ``weight_decay``, coupled and decoupled.
        always_decoupled: whether weight decay cannot be added to the gradient.
        layers: the layer types that have factors of their own, by class.
        unknown_layers: the curvature of all other parameters: of their ``"gradient"``, or the ``"identity"``, F̃ = 1.
        per_sample: whether S is of the gradients of each sample's loss; else of the mean loss.
        average: ``average(olds, news, gamma, count)`` takes the factors of refresh number ``count`` into their
            averages, in place.
        normalize: makes H' and S' of the averages of H and S, in place.
        normalize_update: whether the step is `update.normalized_update`; else `update.bias_corrected_update`.
        orthogonal: whether parameters have different roles: matrices take the steps of `update_orthogonal`.
    """

    lr: float
    damping: float
    gamma: float
    update_interval: int
    weight_decay: float = 5e-4
    decoupled_weight_decay: float = 1e-2
    always_decoupled: bool = False
    layers: LayerTypes
    unknown_layers: Literal["gradient", "identity"] = "gradient"
    per_sample: bool = True
    average: Callable[[list[Tensor], list[Tensor], float, int], None]
    normalize: Callable[[Vectors, Vectors], None]
    normalize_update: bool = False
    orthogonal: bool = False


def _running_mean(olds: list[Tensor], news: list[Tensor], gamma: float, count: int) -> None:
    """The running mean with weight γ of the old value, corrected so that the first refresh gives the new one."""
    foreach_lerp_(olds, news, (1 - gamma) / (1 - gamma**count))


def _released_average(olds: list[Tensor], news: list[Tensor], gamma: float, count: int) -> None:
    """Normalizes first, then averages with weights that let the average shrink to γ/100 / (1 − γ/10)."""
    for old, new in zip(olds, news, strict=True):
        low, high = torch.aminmax(new)
        normalized = ((new - low) / (high - low + 1e-6)).nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)
        old.mul_(gamma / 10).add_(normalized, alpha=gamma / 100)


def _over_mean(H: Vectors, S: Vectors) -> None:
    """Every H over its mean, and S so that the sum of a parameter's products over its uses has mean one."""
    tiny = torch.finfo(H.flat.dtype).tiny  # of a layer whose gradient is zero
    h, s = (vectors.reduce("mean").clamp_(min=tiny) for vectors in (H, S))
    share = h * s / S.of_param(S.sum_by_param(h * s)).clamp_(min=tiny)
    H.flat.div_(H.repeat(h))
    S.flat.div_(S.repeat(s)).mul_(S.repeat(share))


def _min_max(H: Vectors, S: Vectors) -> None:
    """(v − min) / (max − min). A range under 1 % of the maximum is noise about a constant and gives ones."""
    for vectors in (H, S):
        low, high = vectors.reduce("min"), vectors.reduce("max")
        width = high - low
        scaled = (vectors.flat - vectors.repeat(low)).div_(vectors.repeat(width))
        vectors.flat.copy_(torch.where(vectors.repeat(width <= 0.01 * high), 1.0, scaled))


def _as_they_are(H: Vectors, S: Vectors) -> None:
    """For averages that are normalized already."""


_CALIBRATED = Rule(
    lr=1e-2,
    damping=0.01,
    gamma=0.95,
    update_interval=10,
    always_decoupled=True,
    layers=LAYERS,
    average=_running_mean,
    normalize=_over_mean,
    normalize_update=True,
)

RULES: dict[RuleName, Rule] = {
    "calibrated": _CALIBRATED,
    "orthogonal": replace(_CALIBRATED, orthogonal=True),
    "paper": Rule(
        lr=1e-3,
        damping=1e-3,
        gamma=0.8,
        update_interval=1,
        layers=ChainMap(POOLED_CONVOLUTIONS, LAYERS),
        average=_running_mean,
        normalize=_min_max,
    ),
    "released": Rule(
        lr=1e-3,
        damping=1e-3,
        gamma=0.8,
        update_interval=100,
        layers=RELEASED_LAYERS,
        unknown_layers="identity",
        per_sample=False,
        average=_released_average,
        normalize=_as_they_are,
    ),
}
