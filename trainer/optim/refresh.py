"""A refresh: what layers saw, or a gradient, on all ranks, taken into a parameter's averages of H and S.

Functions over the state that `AdaFisher` keeps of a parameter: H, S and ``refreshes`` of each use, and ``captured``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.optim import shards
from trainer.optim.capture import Rows
from trainer.optim.factors import Layer, View, factor_dtype, gradient_factors, gradient_means
from trainer.optim.rules import Factors, Rule
from trainer.optim.update import Pair

State = dict[str, Any]
"""Of one parameter."""
Sums = dict[Any, tuple[Tensor, ...]]
"""By layer, its `Rows`; by parameter, column and row means of g²; by parameter and suffix of a use, the whole of S."""


class Use(NamedTuple):
    """One layer that a parameter belongs to; a tied weight has several. No module: its gradient is the source."""

    module: nn.Module | None
    kind: str
    view: View
    suffix: str
    """Of the keys of H, S and refreshes in the parameter's state."""


class Curvature(NamedTuple):
    """H' and S' of every use of a parameter: for all of it, and for the rows that are on this rank."""

    whole: list[Pair]
    local: list[Pair]


def sums_over_ranks(
    params: Sequence[Tensor],
    pending: Sequence[Tensor],
    uses: Mapping[Tensor, Sequence[Use]],
    states: Mapping[Tensor, State],
    seen: Mapping[nn.Module, Rows],
    layers: Mapping[nn.Module, Layer],
) -> Sums:
    """What a refresh needs of all ranks, by one all-reduce.

    Args:
        params: those to refresh.
        pending: those of them that no layer has seen so far: where they are sharded, their g² may be needed.
        seen: what this rank's layers saw; a layer that one rank did not call others may have called.
        layers: all that could have seen something.
    """
    ranks = shards.ranks_of(params)
    if ranks is None:
        return {**seen}
    parts: Sums = {module: seen.get(module) or _no_rows(module, layer) for module, layer in layers.items()}
    for param in pending:
        if shards.is_sharded(param):
            square = shards.placed(param, shards.local(_square(param)))
            parts[param] = gradient_means(square, uses[param][0].view)
    for param in params:
        for use in uses[param]:
            if shards.S_is_sharded(param, use.view):
                S = states[param][f"S{use.suffix}"]
                parts[param, use.suffix] = (shards.placed(param, shards.local(S)),)
    if not parts:
        return parts
    sums = shards.summed(parts, ranks)
    weights = torch.cat([sums[module][-1] for module in layers]).tolist() if layers else []
    for module, weight in zip(layers, weights, strict=True):
        if not weight:  # no rank called it
            del sums[module]
    return sums


def _no_rows(module: nn.Module, layer: Layer) -> Rows:
    view, weight = layer.views["weight"], module._parameters["weight"]
    assert weight is not None
    H, S, count = (
        torch.zeros(size, dtype=factor_dtype(weight.dtype), device=weight.device)
        for size in (view.H_size, view.S_size, (1,))
    )
    return Rows(H, S, count)


def fresh_factors(
    param: Tensor, uses: Sequence[Use], state: State, sums: Sums, *, fallback: bool
) -> list[tuple[Use, Factors]]:
    """H and S of the uses that were seen; while none ever was, those of the gradient if ``fallback``."""
    seen = [(use, Rows(*sums[use.module]).means()) for use in uses if use.module in sums]
    if seen and not state["captured"]:
        state["captured"] = 1
        for use in uses:  # the factors of the gradient have another scale
            state[f"refreshes{use.suffix}"] = 0
    if seen or state["captured"] or not fallback:
        return seen
    columns, rows = sums.get(param) or gradient_means(_square(param), uses[0].view)
    factors = gradient_factors(columns, rows, uses[0].view)
    return [(uses[0], factors)] if factors else []


def average(
    param: Tensor, state: State, sums: Sums, fresh: Sequence[tuple[Use, Factors]], rule: Rule, gamma: float
) -> None:
    """Takes fresh factors into the averages of the state."""
    for use, (H, S) in fresh:
        state[f"refreshes{use.suffix}"] += 1
        averages = (state[f"H{use.suffix}"], _whole_S(param, use, state, sums))
        for old, new in zip(averages, (use.view.own(H), S), strict=True):
            rule.average(old, new.to(old.dtype), gamma, state[f"refreshes{use.suffix}"])
        if shards.S_is_sharded(param, use.view):
            shards.local(state[f"S{use.suffix}"]).copy_(averages[1][shards.rows(param)])


def normalised(param: Tensor, uses: Sequence[Use], state: State, sums: Sums, rule: Rule) -> Curvature:
    """H' and S' of every use that was refreshed. Without ``sums``, all ranks take part in gathering S."""
    refreshed = [use for use in uses if state[f"refreshes{use.suffix}"]] or uses[:1]
    averages = [(state[f"H{use.suffix}"], _whole_S(param, use, state, sums)) for use in refreshed]
    pairs = zip(refreshed, rule.normalise(averages), strict=True)
    whole = [use.view.pair(*pair) for use, pair in pairs]
    if not shards.is_sharded(param):
        return Curvature(whole, whole)
    return Curvature(whole, [shards.local_pair(param, uses[0].view, pair) for pair in whole])


def _whole_S(param: Tensor, use: Use, state: State, sums: Sums) -> Tensor:
    """S of all rows: from the sums of this refresh where it is sharded; else of the state."""
    if (param, use.suffix) in sums:
        return sums[param, use.suffix][0]
    return shards.whole(state[f"S{use.suffix}"])


def _square(param: Tensor) -> Tensor:
    """g², in the precision of factors."""
    grad = param.grad
    assert grad is not None
    return grad.detach().to(factor_dtype(grad.dtype)).square()
