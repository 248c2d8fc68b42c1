"""What the preconditioner does to each parameter, in numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.optim.adafisher.update import Pair, blocks, preconditioner

_SAMPLE = 2**14


def curvature(pairs: Sequence[Pair], damping: float, shape: torch.Size) -> Tensor:
    """Mean of S'H', and minimum, median and maximum of F̃, [4].

    The mean is exact; the others are over at most 16,384 evenly spread entries.
    """
    mean = torch.stack([_mean_product(H, S) for H, S in pairs]).sum()
    sample = torch.stack([_spread(H, shape) * _spread(S, shape) for H, S in pairs]).sum(0) + damping
    return torch.stack([mean, sample.min(), sample.median(), sample.max()])


def _mean_product(H: Tensor, S: Tensor) -> Tensor:
    """mean(S' H') without their product: an axis that only one of them has is averaged first."""
    only_H = [axis for axis in range(H.dim()) if S.shape[axis] == 1]
    only_S = [axis for axis in range(S.dim()) if H.shape[axis] == 1]
    H = H.mean(only_H, keepdim=True) if only_H else H
    S = S.mean(only_S, keepdim=True) if only_S else S
    return (H * S).mean()


def _spread(factor: Tensor, shape: torch.Size) -> Tensor:
    """Entries of a factor at a stride that leaves at most ``_SAMPLE`` of the parameter's."""
    stride = 1
    while torch.Size(-(-size // stride) for size in shape).numel() > _SAMPLE:
        stride += 1
    return factor[tuple(slice(None, None, stride) for _ in shape)]


def momentum_square(exp_avg: Tensor, pairs: list[Pair], damping: float) -> Tensor:
    """‖m / F̃‖²."""
    squares = [
        (m / preconditioner(factor, damping)).square().sum() for m, *factor in blocks((exp_avg,), pairs)
    ]
    return torch.stack(squares).sum()
