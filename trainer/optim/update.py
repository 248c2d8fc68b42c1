"""The parameter update: momentum over S' ⊗ H' + λ. Pure functions over lists of tensors.

Each rule's update is written twice. The first goes block by block, so that what lies between a parameter and its new
value stays in cache and is never as large as the parameter. The second is whole tensors for ``torch.compile`` to
fuse; its learning rate is a tensor, so that a schedule does not recompile it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.optim.factors import factor_dtype

Pair = tuple[Tensor, Tensor]
"""H' and S' of one use of a parameter, in shapes that broadcast against it."""

UPDATE_RMS = 0.2
"""Root mean square of a calibrated update before the learning rate: the usual size of an AdamW step."""

_TINY = 1e-30  # rms of an update that is zero
_BLOCK = 2**18  # elements: more costs cache misses, less costs calls
_SMALL = 2**14  # parameters up to this many elements are updated together, so that their calls do not add up
_LARGE_BLOCK = 2**22  # a GPU wants large launches


# Block by block -----------------------------------------------------------------------------------------------


def momentum(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    lr: float,
    step_sizes: list[float],
    beta: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """The published update: θ ← θ − η m̂ / F̃, weight decay in the gradient or decoupled; step size: η / (1 − βᵗ)."""
    small, large = _by_size(params, grads, exp_avgs, factors, dampings, step_sizes)
    if small:
        θs, gs, ms, pairs_, dampings, step_sizes = small
        if weight_decay and not decoupled:
            gs = list(torch._foreach_add(gs, θs, alpha=weight_decay))
        torch._foreach_lerp_(ms, gs, 1 - beta)
        if weight_decay and decoupled:
            torch._foreach_mul_(θs, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(θs, ms, _preconditioners(pairs_, dampings), [-size for size in step_sizes])
    for param, grad, exp_avg, pairs, damping, step_size in large:
        scratch = _scratch(param, 1)
        for θ, g, m, *factor in blocks((param, grad, exp_avg), pairs):
            θ32, m32 = _precise(θ), _precise(m)
            g32 = g.add(θ, alpha=weight_decay) if weight_decay and not decoupled else g
            m32.lerp_(g32.to(m32.dtype), 1 - beta)
            if weight_decay and decoupled:
                θ32.mul_(1 - lr * weight_decay)
            θ32.addcdiv_(m32, preconditioner(factor, damping, _like(scratch[0], θ)), value=-step_size)
            _store(m, m32)
            _store(θ, θ32)


def calibrated(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    lr: float,
    beta: float,
    weight_decay: float,
) -> None:
    """θ ← (1 − η κ) θ − η ρ u / rms(u),  u = n / F̃,  n = β m + (1 − β) g."""
    small, large = _by_size(params, grads, exp_avgs, factors, dampings)
    if small:
        θs, gs, ms, pairs_, dampings = small
        torch._foreach_lerp_(ms, gs, 1 - beta)
        us = torch._foreach_lerp(ms, gs, 1 - beta)
        torch._foreach_div_(us, _preconditioners(pairs_, dampings))
        units = torch._foreach_norm(us)
        torch._foreach_clamp_min_(units, _TINY)
        torch._foreach_mul_(units, [1 / (UPDATE_RMS * u.numel() ** 0.5) for u in us])
        if weight_decay:
            torch._foreach_mul_(θs, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(θs, us, units, value=-lr)
    for param, grad, exp_avg, pairs, damping in large:
        scratch = _scratch(param, 2)
        parts = list(blocks((param, grad, exp_avg), pairs))
        norms = []
        for θ, g, m, *factor in parts:
            m32 = _precise(m)
            m32.lerp_(g.to(m32.dtype), 1 - beta)
            _store(m, m32)
            u = _look_ahead(m32, g, beta, _like(scratch[0], θ))
            u.div_(preconditioner(factor, damping, _like(scratch[1], θ)))
            norms.append(torch.linalg.vector_norm(u))
        rms = torch.linalg.vector_norm(torch.stack(norms)) / param.numel() ** 0.5
        unit = rms.clamp_(min=_TINY) / UPDATE_RMS  # taken into F̃, where it costs no pass over the parameter
        scaled, scaled_damping = [(H, S * unit) for H, S in pairs], damping * unit
        for θ, g, m, *factor in blocks((param, grad, exp_avg), scaled):
            θ32, u, F = _precise(θ), _like(scratch[0], θ), unit
            if len(parts) > 1:  # else u is still there
                _look_ahead(_precise(m), g, beta, u)
                F = preconditioner(factor, scaled_damping, _like(scratch[1], θ))
            if weight_decay:
                θ32.mul_(1 - lr * weight_decay)
            θ32.addcdiv_(u, F, value=-lr)
            _store(θ, θ32)


def _by_size(*lists: list[Any]) -> tuple[list[list[Any]], list[tuple[Any, ...]]]:
    """The parameters that are updated together, as lists, and those that are updated one by one, as rows.

    Together go those that are small, of one use, and precise enough to compute with.
    """
    rows = list(zip(*lists, strict=True))
    alike = [
        param.numel() <= _SMALL and len(pairs) == 1 and param.dtype == factor_dtype(param.dtype)
        for param, _, _, pairs, *_ in rows
    ]
    small = [row for row, together in zip(rows, alike, strict=True) if together]
    large = [row for row, together in zip(rows, alike, strict=True) if not together]
    return [list(column) for column in zip(*small, strict=True)], large


def _preconditioners(pairs: list[list[Pair]], dampings: list[float]) -> list[Tensor]:
    F = list(torch._foreach_mul([S for ((_, S),) in pairs], [H for ((H, _),) in pairs]))
    torch._foreach_add_(F, dampings)
    return F


def _look_ahead(m: Tensor, g: Tensor, beta: float, out: Tensor) -> Tensor:
    return torch.lerp(m, g.to(m.dtype), 1 - beta, out=out)


def preconditioner(factor: Sequence[Tensor], damping: float | Tensor, out: Tensor | None = None) -> Tensor:
    """F̃ = Σ over uses S' H' + λ of a block; ``factor`` is H', S' of the first use, of the second, and so on."""
    F = torch.mul(factor[1], factor[0], out=out)  # addcmul would do all at once, but does not vectorise here
    for H, S in zip(factor[2::2], factor[3::2], strict=True):
        F.addcmul_(S, H)
    return F.add_(damping)


def _precise(x: Tensor) -> Tensor:
    """The tensor itself, or a float32 copy of one in half precision."""
    return x.to(factor_dtype(x.dtype))


def _store(target: Tensor, value: Tensor) -> None:
    if target is not value:
        target.copy_(value)


def _block_size(param: Tensor) -> int:
    return _BLOCK if param.device.type == "cpu" else _LARGE_BLOCK


def _scratch(param: Tensor, count: int) -> Tensor:
    size = min(param.numel(), _block_size(param))
    return torch.empty(count, size, dtype=factor_dtype(param.dtype), device=param.device)


def _like(scratch: Tensor, block: Tensor) -> Tensor:
    return scratch[: block.numel()].view(block.shape)


def blocks(tensors: tuple[Tensor, ...], pairs: list[Pair]) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of a parameter and of what has its shape, each followed by those of H' and S' of every use."""
    param = tensors[0]
    tensors += tuple(factor for pair in pairs for factor in pair)
    if not param.is_contiguous():  # channels last: walk in the order of memory
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        tensors = tuple(t.permute(order) for t in tensors)
    return _split(tensors, _block_size(param))


def _split(tensors: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Cuts the first tensor into blocks of at most ``limit`` elements, and with it what broadcasts to it."""
    whole = tensors[0]
    if whole.numel() <= limit:
        yield tensors
        return
    length = whole.shape[0]
    rows = limit * length // whole.numel()
    if rows:
        pieces = [t.split(rows) if t.shape[0] == length else (t,) * -(-length // rows) for t in tensors]
        yield from zip(*pieces, strict=True)
    else:  # one row is more than a block
        for i in range(length):
            yield from _split(tuple(t[i if t.shape[0] == length else 0] for t in tensors), limit)


# Whole tensors, to be compiled --------------------------------------------------------------------------------


def momentum_graph(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    lr: Tensor,
    step_sizes: list[Tensor],
    beta: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """``momentum`` for the compiler."""
    for θ, g, m, pairs, damping, step_size in zip(
        params, grads, exp_avgs, factors, dampings, step_sizes, strict=True
    ):
        θ32, g32 = _precise(θ), _precise(g)
        if weight_decay and not decoupled:
            g32 = g32 + weight_decay * θ32
        m32 = torch.lerp(_precise(m), g32, 1 - beta)
        if weight_decay and decoupled:
            θ32 = θ32 * (1 - lr * weight_decay)
        m.copy_(m32)
        θ.copy_(θ32 - step_size * m32 / (sum(S * H for H, S in pairs) + damping))


def calibrated_graph(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    lr: Tensor,
    beta: float,
    weight_decay: float,
) -> None:
    """``calibrated`` for the compiler."""
    for θ, g, m, pairs, damping in zip(params, grads, exp_avgs, factors, dampings, strict=True):
        g32 = _precise(g)
        m32 = torch.lerp(_precise(m), g32, 1 - beta)
        u = torch.lerp(m32, g32, 1 - beta) / (sum(S * H for H, S in pairs) + damping)
        rms = u.square().mean().sqrt().clamp(min=_TINY)
        m.copy_(m32)
        θ.copy_(_precise(θ) * (1 - lr * weight_decay) - (lr * UPDATE_RMS / rms) * u)


@cache
def compiled(update: Callable[..., None]) -> Callable[..., None]:
    """The update as one graph over the whole list of parameters, given what the eager one is given."""
    whole: Callable[..., None] = momentum_graph if update is momentum else calibrated_graph
    graph = torch.compile(whole, fullgraph=True, dynamic=False)

    def apply(params: list[Tensor], *lists: Any, lr: float, **options: Any) -> None:
        if "step_sizes" in options:
            tensors = {
                size: torch.tensor(size, device=params[0].device) for size in set(options["step_sizes"])
            }
            options["step_sizes"] = [tensors[size] for size in options["step_sizes"]]
        graph(params, *lists, lr=torch.tensor(lr, device=params[0].device), **options)

    return apply
