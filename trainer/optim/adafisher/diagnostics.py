"""What the preconditioner does to each parameter, in numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dtensor
from .preconditioners import Curvature
from .rules import Rule
from .state import Tracked
from .update import UPDATE_RMS
from .update_blocked import blocks, preconditioner
from .views import Pair

_SAMPLE = 2**14
Followed = tuple[Tracked, Curvature]


class Coverage(NamedTuple):
    """Where a parameter's curvature comes from, the shapes of H and S of each use, and the step that it takes."""

    parameter: str
    source: str
    H: list[tuple[int, ...]]
    S: list[tuple[int, ...]]
    update: str


def coverage_of(tracked: Tracked, rule: str) -> Coverage:
    """See `Coverage`."""
    H, S = ([tuple(tracked.state[f"{key}{use.suffix}"].shape) for use in tracked.uses] for key in "HS")
    update = str(tracked.role) if rule == "orthogonal" else rule
    return Coverage(tracked.name, tracked.source, H, S, update)


def full_preconditioner(tracked: Tracked, curvature: Curvature) -> Tensor:
    """F̃ in the shape of the parameter, all rows of it."""
    factor = [part for pair in curvature.full for part in pair]
    return preconditioner(factor, tracked.damping).expand(tracked.view.shape).reshape(tracked.param.shape)


def diagnose(parameters: Sequence[Followed], steps: int, rule: Rule) -> dict[str, dict[str, float]]:
    """What `AdaFisher.diagnostics` returns.

    Args:
        parameters: those that have been updated.
        steps: taken so far.
        rule: by which they were.
    """
    if not parameters:
        return {}
    params = [t.param for t, _ in parameters]
    locals_ = [dtensor.local_tensor(param) for param in params]
    weights = torch.stack(
        [
            torch.linalg.vector_norm(param, dtype=_precise(param.device)).to(locals_[0].device)
            for param in locals_
        ]
    )
    updates = _normalized_squares(locals_) if rule.normalize_update else _update_squares(parameters)
    squares = torch.cat([weights.square(), updates.to(weights)])
    norms = dtensor.sum_over_shards(squares, [*params, *params]).sqrt().tolist()
    curvatures = [
        _summary(curvature.full, t.damping, torch.Size(t.view.shape)) for t, curvature in parameters
    ]
    numbers = torch.stack([c.to(squares) for c in curvatures]).tolist()  # the only wait for a GPU
    result = {}
    for i, (t, _) in enumerate(parameters):
        mean, low, median, high = numbers[i]
        weight, update = norms[i], norms[len(parameters) + i]
        lr = float(t.group["lr"])
        result[t.name] = {
            "share": mean / (mean + t.damping),
            "preconditioner_min": low,
            "preconditioner_median": median,
            "preconditioner_max": high,
            "update_ratio": lr * update / weight if weight else float("inf"),
            "age": float(steps - 1 - t.state["refreshed"]),
        }
    return result


def _normalized_squares(params: Sequence[Tensor]) -> Tensor:
    """‖ρ u / rms(u)‖² of the rows on this rank, [parameters]."""
    squares, device = [UPDATE_RMS**2 * param.numel() for param in params], params[0].device
    return torch.tensor(squares, dtype=_precise(device), device=device)


def _update_squares(parameters: Sequence[Followed]) -> Tensor:
    """‖m / (1 − βᵗ) / F̃‖² of the rows on this rank, [parameters]."""
    squares = []
    for t, curvature in parameters:
        exp_avg = dtensor.local_tensor(t.state["exp_avg"]).view(dtensor.local_shape(t.param, t.view))
        parts = [
            (m / preconditioner(factor, t.damping)).square().sum()
            for m, *factor in blocks((exp_avg,), curvature.local)
        ]
        correction = 1 - t.group["momentum"] ** t.state["step"].item()
        squares.append(torch.stack(parts).sum() / correction**2)
    device = squares[0].device
    return torch.stack([square.to(device, _precise(device)) for square in squares])


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _summary(pairs: Sequence[Pair], damping: float, shape: torch.Size) -> Tensor:
    """Mean of S'H', and minimum, median and maximum of F̃, [4].

    The mean is exact; the others are over at most 16,384 evenly spaced entries.
    """
    mean = torch.stack([_mean_product(H, S) for H, S in pairs]).sum()
    sample = torch.stack([_sample(H, shape) * _sample(S, shape) for H, S in pairs]).sum(0) + damping
    return torch.stack([mean, sample.min(), sample.median(), sample.max()])


def _mean_product(H: Tensor, S: Tensor) -> Tensor:
    """mean(S' H') without their product: an axis that only one of them has is averaged first."""
    only_H = [axis for axis in range(H.dim()) if S.shape[axis] == 1]
    only_S = [axis for axis in range(S.dim()) if H.shape[axis] == 1]
    H = H.mean(only_H, keepdim=True) if only_H else H
    S = S.mean(only_S, keepdim=True) if only_S else S
    return (H * S).mean()


def _sample(factor: Tensor, shape: torch.Size) -> Tensor:
    """Entries of a factor at a stride that leaves at most ``_SAMPLE`` of the parameter's."""
    stride = 1
    while torch.Size(-(-size // stride) for size in shape).numel() > _SAMPLE:
        stride += 1
    return factor[tuple(slice(None, None, stride) for _ in shape)]
