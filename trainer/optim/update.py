"""The parameter update: momentum over S' ⊗ H' + λ, in blocks that stay in cache. Pure functions over lists."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.optim.factors import factor_dtype

Pair = tuple[Tensor, Tensor]
"""H' and S' of one use of a parameter, in shapes that broadcast against the parameter."""

UPDATE_RMS = 0.2
"""Root mean square of a calibrated update before the learning rate: the usual size of an AdamW step."""

_BLOCK = {"cpu": 2**16}  # elements: three or four float32 blocks fit a core's second-level cache
_LARGE_BLOCK = 2**22  # a GPU wants large launches


def preconditioner(pairs: Sequence[Pair], damping: float | Tensor, out: Tensor | None = None) -> Tensor:
    """F̃ = Σ over uses S' H' + λ."""
    H, S = pairs[0]
    damping = torch.as_tensor(damping, dtype=H.dtype, device=H.device)
    F = torch.addcmul(damping, S, H, out=out)
    for H, S in pairs[1:]:
        F.addcmul_(S, H)
    return F


def momentum_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    factors: list[list[Pair]],
    dampings: list[float],
    steps: list[float],
    *,
    lr: float,
    beta: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """The published update: θ ← θ − η m̂ / F̃, with weight decay in the gradient or decoupled."""
    for param, grad, exp_avg, pairs, damping, step in zip(
        params, grads, exp_avgs, factors, dampings, steps, strict=True
    ):
        step_size = lr / (1 - beta**step)
        for θ, g, m, *factor in _blocks(param, grad, exp_avg, pairs):
            if not decoupled and weight_decay:
                g = g.add(θ, alpha=weight_decay)
            m32 = _momentum(m, g, beta)
            θ32 = θ.to(m32.dtype)
            if decoupled and weight_decay:
                θ32.mul_(1 - lr * weight_decay)
            θ32.addcdiv_(m32, preconditioner(_pairs(factor), damping), value=-step_size)
            _store(θ, θ32)


def calibrated_update(
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
    for param, grad, exp_avg, pairs, damping in zip(params, grads, exp_avgs, factors, dampings, strict=True):
        total = torch.zeros((), dtype=factor_dtype(param.dtype), device=param.device)
        for _, g, m, *factor in _blocks(param, grad, exp_avg, pairs):
            m32 = _momentum(m, g, beta)
            u = torch.lerp(m32, g.to(m32.dtype), 1 - beta).div_(preconditioner(_pairs(factor), damping))
            total += u.square_().sum()
        scale = (total / param.numel()).sqrt_().clamp_(min=1e-30) / UPDATE_RMS
        scaled = [(H, S * scale) for H, S in pairs]
        for θ, g, m, *factor in _blocks(param, grad, exp_avg, scaled):
            m32, θ32 = m.to(total.dtype), θ.to(total.dtype)
            n = torch.lerp(m32, g.to(total.dtype), 1 - beta)
            θ32.mul_(1 - lr * weight_decay)
            θ32.addcdiv_(n, preconditioner(_pairs(factor), damping * scale), value=-lr)
            _store(θ, θ32)


def _momentum(m: Tensor, g: Tensor, beta: float) -> Tensor:
    """m ← β m + (1 − β) g, computed in float32 at least."""
    m32 = m.to(factor_dtype(m.dtype))
    m32.lerp_(g.to(m32.dtype), 1 - beta)
    _store(m, m32)
    return m32


def _store(target: Tensor, value: Tensor) -> None:
    if target is not value:
        target.copy_(value)


def _pairs(factor: Sequence[Tensor]) -> list[Pair]:
    return list(zip(factor[::2], factor[1::2], strict=True))


def _blocks(param: Tensor, grad: Tensor, exp_avg: Tensor, pairs: list[Pair]) -> Iterator[tuple[Tensor, ...]]:
    limit = _BLOCK.get(param.device.type, _LARGE_BLOCK)
    return _split((param, grad, exp_avg, *(factor for pair in pairs for factor in pair)), limit)


def _split(tensors: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Cuts the first tensor into blocks of about ``limit`` elements, and with it the others, that broadcast to it."""
    whole = tensors[0]
    if whole.numel() <= limit:
        yield tensors
        return
    length = whole.shape[0]
    rows = max(1, limit * length // whole.numel())
    pieces = [t.split(rows) if t.shape[0] == length else (t,) * -(-length // rows) for t in tensors]
    for block in zip(*pieces, strict=True):
        if rows > 1:
            yield block
        else:  # a single row may be larger than a block
            yield from _split(tuple(t[0] for t in block), limit)
