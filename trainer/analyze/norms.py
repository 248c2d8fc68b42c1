"""Full factors of norm layers, whose scale multiplies each entry of the normalised rows x̂ by a number of its own.

With s the rows of the gradient of the per-sample loss with respect to the output, and one row for each sample and
position::

    A = mean over rows of x̂ x̂ᵀ        G = mean over rows of s sᵀ        Fisher of the scale ≈ A ∘ G, entry by entry

if x̂ and s were independent (Proposition 3.1 of arXiv 2405.16397). AdaFisher keeps the diagonals.
"""

import math
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.optim.adafisher.layers import Layer
from trainer.optim.adafisher.views import View
from trainer.optim.kronecker.rows import second_moment

Norm = _BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm


def is_norm(module: nn.Module) -> TypeGuard[Norm]:
    """Whether full factors of a module are known as those of a norm: it has a scale."""
    return isinstance(module, Norm) and module.weight is not None


def rows_of(module: Norm, x: Tensor) -> Tensor:
    """A tensor of the shape of a norm's input as its rows: [N, entries of the scale]."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return x.reshape(-1, math.prod(module.normalized_shape))
    return x.movedim(1, -1).flatten(0, -2)


def normalised(module: Norm, x: Tensor) -> Tensor:
    """x̂ in training mode, in the shape of x."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    return F.batch_norm(x, None, None, training=True, eps=module.eps)


def full_norm(module: Norm) -> Layer:
    """A layer whose H is A and whose S is G, for `Capture`."""
    entries = module.weight.numel()

    def H(x: Tensor, output: torch.Size) -> Tensor:
        return second_moment(rows_of(module, normalised(module, x)))

    def S(s: Tensor) -> Tensor:
        return second_moment(rows_of(module, s))

    size = (entries, entries)
    return Layer(type(module).__name__, H, S, {"weight": View((), (), (), size, size)}, width=entries)
