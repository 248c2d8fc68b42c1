"""The two updates, on full tensors. `update_blocked`, `update_compiled` and `update_triton` do the same faster.

Functions over lists, with an entry for each parameter. ``factors`` are H' and S' of each of its uses, in shapes that
broadcast against it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .mean_squares import factor_dtype
from .views import Pair

UPDATE_RMS = 0.2
"""ρ, the root mean square of a normalized update before the learning rate: the usual size of an AdamW step."""

GRADIENT_FLOOR = 3e-4
"""A gradient is rounding noise if its root mean square is under this part of what the curvature says of a real one.

With float32 the noise of a sum over N rows was measured between 2e-7 (N = 300) and 1.4e-4 (N = 65,536) of it, real
gradients between 0.5 and 1, and their running means about 0.1."""

TINY = 1e-30
"""Divides what is zero."""


def normalized_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    sizes: Tensor,
    expected: Tensor,
    *,
    lr: float | Tensor,
    beta: float | Tensor,
    weight_decay: float | Tensor,
    sums: Tensor | None = None,
) -> None:
    """The momentum m ← β m + (1 − β) g,  n = β m + (1 − β) g,  u = n / F̃,  θ ← (1 − η κ) θ − η ρ u / max(rms(u), ε).

    Args:
        sizes, expected: for ε, see `floored_rms`.
        sums: `sum_of_squares` over all ranks, [parameters], where each has a part of the rows; else taken here.
    """
    if sums is None:
        sums = sum_of_squares(grads, exp_avgs, factors, dampings, beta=beta)
    lengths = floored_rms(sums, sizes, expected)
    rows = zip(params, grads, exp_avgs, factors, dampings, lengths, strict=True)
    for param, grad, exp_avg, pairs, damping, length in rows:
        m = _lerp(precise(exp_avg), precise(grad), 1 - beta)
        n = _lerp(m, precise(grad), 1 - beta)
        u = n / preconditioner(pairs, damping)
        param.copy_((1 - lr * weight_decay) * precise(param) - lr * UPDATE_RMS / length * u)
        exp_avg.copy_(m)


def sum_of_squares(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    *,
    beta: float | Tensor,
) -> Tensor:
    """Σ u² of each parameter, [parameters], before its momentum has taken in the gradient."""
    sums = []
    for grad, exp_avg, pairs, damping in zip(grads, exp_avgs, factors, dampings, strict=True):
        n = _lerp(precise(exp_avg), precise(grad), 1 - beta**2)  # both steps of `normalized_update`
        square = (n / preconditioner(pairs, damping)).square()
        # the compiler does not vectorize one sum over everything
        sums.append(square.flatten(1).sum(1).sum() if square.dim() > 1 else square.sum())
    return torch.stack(sums)


def floored_rms(sums: Tensor, sizes: Tensor, expected: Tensor) -> Tensor:
    """max(rms(u), ε) of each parameter, [parameters], where ε is met by rounding noise only.

    A gradient is noise if it is far smaller than its curvature says. Clipping makes gradients smaller, too, but all of
    them: what the median parameter has is no less than all of what is expected.

    Args:
        sums: [parameters], Σ u² over all elements of each.
        sizes: [parameters], the number of these elements.
        expected: [parameters], rms(u) of a gradient whose rows have random signs; nan if that is not known.
    """
    rms = (sums / sizes).sqrt()
    ratios = (rms / expected).sort().values  # nan last
    middle = (expected.isfinite().sum() - 1).clamp(min=0) // 2
    typical = ratios.gather(0, middle[None]).clamp(
        max=1
    )  # the median; torch's nanmedian would wait for a GPU
    return rms.maximum((GRADIENT_FLOOR * typical * expected).nan_to_num(TINY).clamp(min=TINY))


def bias_corrected_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    corrections: Sequence[Any],
    *,
    lr: float | Tensor,
    beta: float | Tensor,
    weight_decay: float | Tensor,
    decoupled: bool,
) -> None:
    """The momentum m ← β m + (1 − β) g,  θ ← θ − η m / (1 − βᵗ) / F̃.

    Args:
        decoupled: whether weight decay κ θ is added to the update; else to g.
        corrections: 1 − βᵗ of each parameter.
    """
    rows = zip(params, grads, exp_avgs, factors, dampings, corrections, strict=True)
    for param, grad, exp_avg, pairs, damping, correction in rows:
        g = precise(grad) if decoupled else precise(grad) + weight_decay * precise(param)
        m = _lerp(precise(exp_avg), g, 1 - beta)
        shrink = 1 - lr * weight_decay if decoupled else 1.0
        param.copy_(shrink * precise(param) - lr / correction * m / preconditioner(pairs, damping))
        exp_avg.copy_(m)


def preconditioner(pairs: Sequence[Pair], damping: float | Tensor) -> Tensor:
    """F̃ = Σ over uses S' H' + λ, in the shape of the parameter or one that broadcasts to it."""
    products = [S * H for H, S in pairs]
    return sum(products[1:], start=products[0]) + damping


def _lerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """`torch.lerp`, which takes a tensor for a weight in the precision of the others only."""
    return torch.lerp(start, end, weight.to(start.dtype) if isinstance(weight, Tensor) else weight)


def precise(x: Tensor) -> Tensor:
    """The tensor itself, or a float32 copy of one in half precision."""
    return x.to(factor_dtype(x.dtype))
