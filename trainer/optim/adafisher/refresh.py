"""A refresh: the factors of this step's batch, of all ranks, taken into the averages of H and S.

Functions over lists of parameters, since on a GPU every operation costs a launch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import dtensor
from ._torch_private import foreach_clamp_max
from .hooks import Rows
from .layers import Layer, own_parameters
from .mean_squares import factor_dtype
from .rules import Rule
from .state import Tracked, Use
from .views import Pair, gradient_factors, gradient_means

LARGEST = 1e18
"""Larger factors are cut off, so that products of H and S, and sums over them, are finite in float32.

The square of a value overflows beyond 1.8e19, where a loss and a gradient are finite yet, and an average would keep it.
"""

FullS = Mapping[tuple[Tensor, str], Tensor]
"""All rows of S, by parameter and suffix of the use."""


class LayerFactors(NamedTuple):
    """H and S of a layer over the batches of all ranks."""

    H: Tensor
    S: Tensor
    row_weight: float
    """Rows / samples²: a gradient whose rows have random signs has mean square row weight · mean S · mean H."""


@dataclass(frozen=True)
class RefreshInputs:
    """What a refresh needs besides the optimizer's state; the same on all ranks."""

    by_layer: Mapping[nn.Module, LayerFactors]
    """Of the layers that some rank called."""
    gradient_means: Mapping[Tensor, Pair] = field(default_factory=dict)
    """Of sharded parameters whose layers no rank was seen to call: column and row means of g²."""
    full_S: FullS = field(default_factory=dict)
    """The averages of S that are sharded, gathered."""


def gather(
    tracked: Sequence[Tracked], captured: Mapping[nn.Module, Rows], layers: Mapping[nn.Module, Layer]
) -> RefreshInputs:
    """Collects what a refresh needs from all ranks, in one all-reduce.

    Args:
        tracked: the parameters to refresh.
        captured: what this rank's layers saw; other ranks may have called others.
        layers: all that may have been captured on any rank.
    """
    ranks = dtensor.ranks_of([t.param for t in tracked])
    if ranks is None:
        return RefreshInputs(
            {
                module: LayerFactors(rows.H, rows.S, rows.rows / rows.samples**2)
                for module, rows in captured.items()
            }
        )
    sums: dtensor.Tensors = {
        module: layer_sums(layer, captured.get(module), _parameter(module, layer))
        for module, layer in layers.items()
    }
    means: dtensor.Tensors = {}
    S_rows: dtensor.Tensors = {}
    for t in tracked:
        if dtensor.is_sharded(t.param) and t.needs_gradient_factors:
            square = dtensor.zero_padded_rows(t.param, dtensor.local_tensor(_squared_gradient(t.param)))
            means[t.param] = gradient_means(square, t.view)
        for use in t.uses:
            if dtensor.S_is_sharded(t.param, use.view):
                S = dtensor.local_tensor(t.state[f"S{use.suffix}"])
                S_rows[t.param, use.suffix] = (dtensor.zero_padded_rows(t.param, S),)
    parts: list[Any] = [sums, means, S_rows]
    summed: list[Any] = dtensor.sum_over_ranks(parts, ranks)
    sums, means, S_rows = summed
    counts = _read([count for _, _, count in sums.values()])
    return RefreshInputs(
        {
            module: LayerFactors(H / rows, S / rows, rows / samples**2)
            for (module, (H, S, _)), (rows, samples) in zip(sums.items(), counts, strict=True)
            if rows  # some rank called it
        },
        {param: (columns, rows) for param, (columns, rows) in means.items()},
        {key: S for key, (S,) in S_rows.items()},
    )


def _parameter(module: nn.Module, layer: Layer) -> Tensor:
    return next(p for name, p in own_parameters(module).items() if name in layer.views)


def layer_sums(layer: Layer, seen: Rows | None, param: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H and S summed over the rows of this rank, and the numbers of rows and samples, [2].

    Args:
        seen: None if this rank did not call the layer.
        param: of the layer, on whose device and in whose precision they are.
    """
    options: dict[str, Any] = {"dtype": factor_dtype(param.dtype), "device": param.device}
    if seen is None:
        H_size, S_size = layer.sizes
        return torch.zeros(H_size, **options), torch.zeros(S_size, **options), torch.zeros(2, **options)
    return seen.H * seen.rows, seen.S * seen.rows, torch.tensor([seen.rows, seen.samples], **options)


class NewFactors(NamedTuple):
    """What one use of a parameter adds to its averages."""

    of: Tracked
    use: Use
    H: Tensor
    S: Tensor
    row_weight: float


def new_factors(tracked: Sequence[Tracked], inputs: RefreshInputs) -> list[NewFactors]:
    """The factors of every layer that was captured; of the gradient for parameters of which none ever was."""
    found = []
    for t in tracked:
        called = [
            (use, inputs.by_layer[use.module])
            for use in t.uses
            if use.module is not None and use.module in inputs.by_layer
        ]
        if called and not t.state["captured"]:
            t.state["captured"] = 1
            for use in t.uses:  # factors of the gradient have another scale: forget them
                t.state[f"refreshes{use.suffix}"] = 0
        found += [NewFactors(t, use, *factors) for use, factors in called]
    return found + _factors_of_gradients([t for t in tracked if t.needs_gradient_factors], inputs)


def _factors_of_gradients(tracked: Sequence[Tracked], inputs: RefreshInputs) -> list[NewFactors]:
    """Leaves out gradients that are zero or not finite, of which nothing can be learnt."""
    means = [
        inputs.gradient_means.get(t.param) or gradient_means(_squared_gradient(t.param), t.view)
        for t in tracked
    ]
    sizes = _read([S.mean() for _, S in means])
    return [
        # without rows nothing says what size a real gradient would have, so that row_weight is zero
        NewFactors(t, t.uses[0], *gradient_factors(columns, S, t.view), row_weight=0.0)
        for t, (columns, S), size in zip(tracked, means, sizes, strict=True)
        if 0 < size < math.inf  # nor nan
    ]


def _read(tensors: Sequence[Tensor]) -> list[Any]:
    """The values of tensors, of any devices, read at once."""
    return torch.stack([tensor.to(tensors[0].device) for tensor in tensors]).tolist() if tensors else []


def update_averages(new: Sequence[NewFactors], full_S: FullS, rule: Rule) -> None:
    """Takes new factors into the averages of their parameters' states."""
    batches: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
    for t, use, H, S, row_weight in new:
        t.state[f"row_weight{use.suffix}"] = row_weight
        t.state[f"refreshes{use.suffix}"] += 1
        old_H, old_S = averages(t, use, full_S)
        key = (t.group["gamma"], t.state[f"refreshes{use.suffix}"], old_H.device, old_H.dtype)
        olds, news = batches.setdefault(key, ([], []))
        olds += [old_H, old_S]
        news += [_one(old_H.device, old_H.dtype) if use.view.columns is None else H, S]
    for (gamma, count, device, dtype), (olds, news) in batches.items():
        finite = foreach_clamp_max([new.to(device, dtype) for new in news], LARGEST)
        rule.average(olds, list(finite), gamma, count)
    for t, use, *_ in new:
        if dtensor.S_is_sharded(t.param, use.view):
            _, S = averages(t, use, full_S)
            dtensor.local_tensor(t.state[f"S{use.suffix}"]).copy_(S[dtensor.rows(t.param)])


def averages(tracked: Tracked, use: Use, full_S: FullS) -> Pair:
    """H and all rows of S. A sharded S that is not in ``full_S`` is gathered, for which all ranks must call this."""
    H, S = tracked.state[f"H{use.suffix}"], tracked.state[f"S{use.suffix}"]
    if (tracked.param, use.suffix) in full_S:
        return H, full_S[tracked.param, use.suffix]
    if not tracked.state[f"refreshes{use.suffix}"]:  # still as it was made: no need to ask other ranks
        return H, H.new_ones(S.shape)
    return H, dtensor.full_tensor(S)


@cache
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.ones(1, device=device, dtype=dtype)


def _squared_gradient(param: Tensor) -> Tensor:
    """g², in the precision of factors."""
    assert param.grad is not None
    return param.grad.detach().to(factor_dtype(param.grad.dtype)).square()
