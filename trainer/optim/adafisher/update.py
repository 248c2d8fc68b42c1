"""The parameter update: momentum over S' ⊗ H' + λ. Pure functions over lists of tensors.

Most of it is written twice. The first goes block by block, so that what lies between a parameter and its new
value stays in cache and is never as large as the parameter. The second is whole tensors for ``torch.compile`` to
fuse; its learning rate is a tensor, so that a schedule does not recompile it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.optim.adafisher.mean_squares import factor_dtype

Pair = tuple[Tensor, Tensor]
"""H' and S' of one use of a parameter, in shapes that broadcast against it."""

UPDATE_RMS = 0.2
"""Root mean square of a calibrated update before the learning rate: the usual size of an AdamW step."""

TINY = 1e-30  # rms of an update that is zero
_BLOCK = 2**18  # elements: more costs cache misses, less costs calls
_SMALL = 2**16  # parameters up to this many elements are updated together, so that their calls do not add up
_LARGE_BLOCK = 2**22  # a GPU wants large launches


# Block by block -----------------------------------------------------------------------------------------------


def momentum(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[Any],
    *,
    lr: float,
    step_sizes: list[float],
    beta: float,
    weight_decay: float,
    decoupled: bool,
    look_ahead: bool = False,
) -> None:
    """θ ← θ − step size · m / F̃, weight decay in the gradient or decoupled; with ``look_ahead`` n instead of m."""
    small, large = _by_size(params, factors, grads, exp_avgs, dampings, step_sizes)
    if small:
        θs, pairs_, gs, ms, dampings, step_sizes = small
        if weight_decay and not decoupled:
            gs = list(torch._foreach_add(gs, θs, alpha=weight_decay))
        torch._foreach_lerp_(ms, gs, 1 - beta)
        if look_ahead:
            ms = list(torch._foreach_lerp(ms, gs, 1 - beta))
        if weight_decay and decoupled:
            torch._foreach_mul_(θs, 1 - lr * weight_decay)
        torch._foreach_addcdiv_(θs, ms, _preconditioners(pairs_, dampings), [-size for size in step_sizes])
    for param, pairs, grad, exp_avg, damping, step_size in large:
        scratch = _scratch(param, 1 + look_ahead)
        for θ, g, m, *factor in blocks((param, grad, exp_avg), pairs):
            θ32, m32 = _precise(θ), _precise(m)
            g32 = g.add(θ, alpha=weight_decay) if weight_decay and not decoupled else g
            g32 = g32.to(m32.dtype)
            m32.lerp_(g32, 1 - beta)
            if weight_decay and decoupled:
                θ32.mul_(1 - lr * weight_decay)
            n = torch.lerp(m32, g32, 1 - beta, out=_like(scratch[1], θ)) if look_ahead else m32
            θ32.addcdiv_(n, preconditioner(factor, damping, _like(scratch[0], θ)), value=-step_size)
            _store(m, m32)
            _store(θ, θ32)


def measured(
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    beta: float,
) -> Tensor:
    """Σ u² of each parameter, [parameters]: u = n / F̃, n the look-ahead of the momentum that the gradient gives."""
    weight = 1 - beta**2  # n = β m + (1 − β) g of the new m, in one step from the old one
    small, large = _by_size(grads, factors, exp_avgs, dampings, range(len(grads)))
    norms: list[Any] = [None] * len(grads)
    if small:
        gs, pairs_, ms, dampings, places = small
        us = list(torch._foreach_lerp(ms, gs, weight))
        torch._foreach_div_(us, _preconditioners(pairs_, dampings))
        for i, norm in zip(places, torch._foreach_norm(us), strict=True):
            norms[i] = norm
    for grad, pairs, exp_avg, damping, i in large:
        scratch, parts = _scratch(grad, 2), []
        for g, m, *factor in blocks((grad, exp_avg), pairs):
            m32 = _precise(m)
            u = torch.lerp(m32, g.to(m32.dtype), weight, out=_like(scratch[0], g))
            parts.append(
                torch.linalg.vector_norm(u.div_(preconditioner(factor, damping, _like(scratch[1], g))))
            )
        norms[i] = torch.linalg.vector_norm(torch.stack(parts)) if parts else exp_avg.new_zeros(())
    return torch.stack(norms).square()


def stretched(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    squares: Tensor,
    *,
    sizes: list[int],
    lr: float,
    beta: float,
    weight_decay: float,
    apply: Callable[..., None] = momentum,
) -> None:
    """θ ← (1 − η κ) θ − η ρ u / rms(u), given Σ u² [parameters] and sizes over whole parameters.

    The scale is taken into F̃, where it costs no pass over the parameter.
    """
    counts = torch.tensor(sizes, dtype=squares.dtype, device=squares.device)
    units = (squares / counts).sqrt().clamp(min=TINY).div(UPDATE_RMS).unbind()
    scaled = [[(H, S * unit) for H, S in pairs] for pairs, unit in zip(factors, units, strict=True)]
    scaled_dampings = [damping * unit for damping, unit in zip(dampings, units, strict=True)]
    options = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "decoupled": True, "look_ahead": True}
    apply(params, grads, exp_avgs, scaled, scaled_dampings, step_sizes=[lr] * len(params), **options)


def calibrated(
    params: list[Tensor],
    *lists: Any,
    squares: Tensor | None = None,
    compile: bool = False,
    **options: Any,
) -> None:
    """u = n / F̃,  n = β m + (1 − β) g,  θ ← (1 − η κ) θ − η ρ u / rms(u).

    Args:
        lists: gradients, momenta, factors and dampings.
        squares: Σ u² of whole parameters, [parameters], where those here are shards; else they are measured.
        options: ``sizes`` of whole parameters, ``lr``, ``beta`` and ``weight_decay``.
    """
    if squares is None and compile:
        compiled(calibrated_graph)(params, *lists, **options)
        return
    if squares is None:
        squares = measured(*lists, beta=options["beta"])
    apply: Callable[..., None] = compiled(stretched_graph) if compile else stretched
    apply(params, *lists, squares, **options)


def _by_size(
    params: list[Tensor], factors: list[list[Pair]], *lists: Sequence[Any]
) -> tuple[list[list[Any]], list[tuple[Any, ...]]]:
    """The parameters that are updated together, as lists, and those that are updated one by one, as rows.

    Together go those that are small, of one use, and precise enough to compute with.
    """
    rows = list(zip(params, factors, *lists, strict=True))
    alike = [
        param.numel() <= _SMALL and len(pairs) == 1 and param.dtype == factor_dtype(param.dtype)
        for param, pairs, *_ in rows
    ]
    small = [row for row, together in zip(rows, alike, strict=True) if together]
    large = [row for row, together in zip(rows, alike, strict=True) if not together]
    return [list(column) for column in zip(*small, strict=True)], large


def _preconditioners(pairs: list[list[Pair]], dampings: list[float]) -> list[Tensor]:
    F = list(torch._foreach_mul([S for ((_, S),) in pairs], [H for ((H, _),) in pairs]))
    torch._foreach_add_(F, dampings)
    return F


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
    dampings: list[Any],
    *,
    lr: Tensor,
    step_sizes: list[Tensor],
    beta: float,
    weight_decay: float,
    decoupled: bool,
    look_ahead: bool = False,
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
        n = torch.lerp(m32, g32, 1 - beta) if look_ahead else m32
        m.copy_(m32)
        θ.copy_(θ32 - step_size * n / (sum(S * H for H, S in pairs) + damping))


def measured_graph(
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    *,
    beta: float,
) -> Tensor:
    """``measured`` for the compiler."""
    sums = []
    for g, m, pairs, damping in zip(grads, exp_avgs, factors, dampings, strict=True):
        u = torch.lerp(_precise(m), _precise(g), 1 - beta**2) / (sum(S * H for H, S in pairs) + damping)
        rows = u.square().flatten(1).sum(1) if u.dim() > 1 else u.square()  # a sum of all would not vectorise
        sums.append(rows.sum())
    return torch.stack(sums)


def stretched_graph(*lists: Any, **options: Any) -> None:
    """``stretched`` for the compiler."""
    stretched(*lists, **options, apply=momentum_graph)


def calibrated_graph(params: list[Tensor], *lists: Any, beta: float, **options: Any) -> None:
    """``calibrated`` for the compiler, of parameters that are whole."""
    stretched_graph(params, *lists, measured_graph(*lists, beta=beta), beta=beta, **options)


@cache
def compiled(update: Callable[..., Any]) -> Callable[..., Any]:
    """The update as one graph over the whole list of parameters. Numbers that a schedule changes become tensors."""
    graph = torch.compile(update, fullgraph=True, dynamic=False)

    def apply(first: list[Tensor], *lists: Any, **options: Any) -> Any:
        device = first[0].device
        if "lr" in options:
            options["lr"] = torch.tensor(options["lr"], device=device)
        if "step_sizes" in options:
            tensors = {size: torch.tensor(size, device=device) for size in set(options["step_sizes"])}
            options["step_sizes"] = [tensors[size] for size in options["step_sizes"]]
        return graph(first, *lists, **options)

    return apply
