"""The updates of `update`, block by block, for a CPU and for what Triton cannot do.

What lies between a parameter and its new value stays in cache and is never as large as the parameter. Small
parameters are updated together, so that their calls do not add up.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._torch_private import (
    foreach_add,
    foreach_add_,
    foreach_addcdiv_,
    foreach_div_,
    foreach_lerp,
    foreach_lerp_,
    foreach_mul,
    foreach_mul_,
    foreach_norm,
)
from .mean_squares import factor_dtype
from .update import UPDATE_RMS, floored_rms, precise
from .views import Pair

_BLOCK = 2**18  # elements: more costs cache misses, less costs calls
_SMALL = 2**16  # elements of the largest parameter that is updated together with others
_LARGE_BLOCK = 2**22  # a GPU wants large launches


def normalized_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    sizes: Tensor,
    expected: Tensor,
    *,
    lr: float,
    beta: float,
    weight_decay: float,
    sums: Tensor | None = None,
) -> None:
    """`update.normalized_update`; max(rms(u), ε) / ρ is taken into F̃, where it costs no pass over θ."""
    if sums is None:
        sums = sum_of_squares(grads, exp_avgs, factors, dampings, beta=beta)
    units = (floored_rms(sums, sizes, expected) / UPDATE_RMS).unbind()
    scaled = [[(H, S * unit) for H, S in pairs] for pairs, unit in zip(factors, units, strict=True)]
    scaled_dampings = [damping * unit for damping, unit in zip(dampings, units, strict=True)]
    steps = [lr] * len(params)
    decay = {"shrink": 1 - lr * weight_decay}
    _update(params, grads, exp_avgs, scaled, scaled_dampings, steps, beta=beta, look_ahead=True, **decay)


def bias_corrected_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    corrections: Sequence[float],
    *,
    lr: float,
    beta: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`update.bias_corrected_update`."""
    decay = {"shrink": 1 - lr * weight_decay} if decoupled else {"l2": weight_decay}
    steps = [lr / correction for correction in corrections]
    _update(params, grads, exp_avgs, factors, dampings, steps, beta=beta, look_ahead=False, **decay)


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[Any],
    steps: Sequence[float],
    *,
    beta: float,
    look_ahead: bool,
    shrink: float = 1.0,
    l2: float = 0.0,
) -> None:
    """θ ← shrink θ − step n / F̃, where n is the new momentum of g + l2 θ, or with ``look_ahead`` one step beyond it."""
    small, large = _by_size(params, factors, grads, exp_avgs, dampings, steps)
    if small:
        thetas, small_factors, gs, ms, dampings, steps = small
        if l2:
            gs = list(foreach_add(gs, thetas, alpha=l2))
        foreach_lerp_(ms, gs, 1 - beta)
        if look_ahead:
            ms = list(foreach_lerp(ms, gs, 1 - beta))
        if shrink != 1:
            foreach_mul_(thetas, shrink)
        foreach_addcdiv_(thetas, ms, _preconditioners(small_factors, dampings), [-step for step in steps])
    for param, pairs, grad, exp_avg, damping, step in large:
        scratch = _scratch(param, 1 + look_ahead)
        for theta, g, m, *factor in blocks((param, grad, exp_avg), pairs):
            theta32, m32 = precise(theta), precise(m)
            g32 = (g.add(theta, alpha=l2) if l2 else g).to(m32.dtype)
            m32.lerp_(g32, 1 - beta)
            if shrink != 1:
                theta32.mul_(shrink)
            n = torch.lerp(m32, g32, 1 - beta, out=_like(scratch[1], theta)) if look_ahead else m32
            theta32.addcdiv_(n, preconditioner(factor, damping, _like(scratch[0], theta)), value=-step)
            _store(m, m32)
            _store(theta, theta32)


def sum_of_squares(
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
    *,
    beta: float,
) -> Tensor:
    """`update.sum_of_squares`."""
    weight = 1 - beta**2
    small, large = _by_size(grads, factors, exp_avgs, dampings, range(len(grads)))
    norms: list[Any] = [None] * len(grads)
    if small:
        gs, small_factors, ms, dampings, places = small
        us = list(foreach_lerp(ms, gs, weight))
        foreach_div_(us, _preconditioners(small_factors, dampings))
        for i, norm in zip(places, foreach_norm(us), strict=True):
            norms[i] = norm
    for grad, pairs, exp_avg, damping, i in large:
        scratch, parts = _scratch(grad, 2), []
        for g, m, *factor in blocks((grad, exp_avg), pairs):
            m32 = precise(m)
            u = torch.lerp(m32, g.to(m32.dtype), weight, out=_like(scratch[0], g))
            u.div_(preconditioner(factor, damping, _like(scratch[1], g)))
            parts.append(torch.linalg.vector_norm(u))
        norms[i] = torch.linalg.vector_norm(torch.stack(parts)) if parts else exp_avg.new_zeros(())
    return torch.stack(norms).square()


def _by_size(
    params: list[Tensor], factors: Sequence[Sequence[Pair]], *lists: Sequence[Any]
) -> tuple[list[list[Any]], list[tuple[Any, ...]]]:
    """The parameters that are updated together, as lists, and those that are updated one by one, as rows.

    Those updated together are small, of one use, and precise enough to compute with.
    """
    rows = list(zip(params, factors, *lists, strict=True))
    is_small = [
        param.numel() <= _SMALL and len(pairs) == 1 and param.dtype == factor_dtype(param.dtype)
        for param, pairs, *_ in rows
    ]
    small = [row for row, together in zip(rows, is_small, strict=True) if together]
    large = [row for row, together in zip(rows, is_small, strict=True) if not together]
    return [list(column) for column in zip(*small, strict=True)], large


def _preconditioners(factors: Sequence[Sequence[Pair]], dampings: Sequence[Any]) -> list[Tensor]:
    """F̃ of parameters of one use."""
    F = list(foreach_mul([S for ((_, S),) in factors], [H for ((H, _),) in factors]))
    foreach_add_(F, dampings)
    return F


def preconditioner(factor: Sequence[Tensor], damping: float | Tensor, out: Tensor | None = None) -> Tensor:
    """F̃ of a block; ``factor`` is H', S' of the first use, of the second, and so on."""
    F = torch.mul(factor[1], factor[0], out=out)  # addcmul would do all at once, but does not vectorize here
    for H, S in zip(factor[2::2], factor[3::2], strict=True):
        F.addcmul_(S, H)
    return F.add_(damping)


def _store(target: Tensor, value: Tensor) -> None:
    if target is not value:
        target.copy_(value)


def _block_size(param: Tensor) -> int:
    return _BLOCK if param.device.type == "cpu" else _LARGE_BLOCK


def _scratch(param: Tensor, count: int) -> Tensor:
    """Memory for ``count`` blocks."""
    size = min(param.numel(), _block_size(param))
    return torch.empty(count, size, dtype=factor_dtype(param.dtype), device=param.device)


def _like(scratch: Tensor, block: Tensor) -> Tensor:
    return scratch[: block.numel()].view(block.shape)


def blocks(tensors: tuple[Tensor, ...], pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of a parameter and of what has its shape, each followed by those of H' and S' of every use."""
    param = tensors[0]
    tensors += tuple(factor for pair in pairs for factor in pair)
    if not param.is_contiguous():  # channels last: walk in the order of memory
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        tensors = tuple(t.permute(order) for t in tensors)
    return _split(tensors, _block_size(param))


def _split(tensors: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Splits the first tensor into blocks of at most ``limit`` elements, and with it what broadcasts to it."""
    full = tensors[0]
    if full.numel() <= limit:
        yield tensors
        return
    length = full.shape[0]
    rows = limit * length // full.numel()
    if rows:
        pieces = [t.split(rows) if t.shape[0] == length else (t,) * -(-length // rows) for t in tensors]
        yield from zip(*pieces, strict=True)
    else:  # one row is more than a block
        for i in range(length):
            yield from _split(tuple(t[i if t.shape[0] == length else 0] for t in tensors), limit)
