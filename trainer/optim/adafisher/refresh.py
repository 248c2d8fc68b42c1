"""A refresh: what layers saw, or a gradient, on all ranks, taken into the averages of H and S.

Functions over the state that `AdaFisher` keeps of a parameter: H, S and ``refreshes`` of each use, and ``captured``.
They take all parameters at once, since on a GPU every operation costs a launch.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.optim.adafisher import dtensor
from trainer.optim.adafisher.hooks import Rows
from trainer.optim.adafisher.layers import Layer, View, gradient_factors, gradient_means
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.adafisher.rules import Factors, Rule, Vectors
from trainer.optim.adafisher.update import Pair

State = dict[str, Any]
"""Of one parameter."""
Seen = dict[Any, tuple[Tensor, ...]]
"""By layer, its H and S; by parameter, column and row means of g²; by parameter and suffix of a use, the whole of S."""


class Use(NamedTuple):
    """One layer that a parameter belongs to; a tied weight has several. No module: its gradient is the source."""

    module: nn.Module | None
    kind: str
    view: View
    suffix: str
    """Of the keys of H, S and refreshes in the parameter's state."""


class Fresh(NamedTuple):
    """What one use of a parameter adds to its averages."""

    param: Tensor
    use: Use
    H: Tensor
    S: Tensor


def over_ranks(
    params: Sequence[Tensor],
    pending: Sequence[Tensor],
    uses: Mapping[Tensor, Sequence[Use]],
    states: Mapping[Tensor, State],
    rows: Mapping[nn.Module, Rows],
    layers: Mapping[nn.Module, Layer],
) -> Seen:
    """What a refresh needs of all ranks, by one all-reduce.

    Args:
        params: those to refresh.
        pending: those of them that no layer has seen so far: where they are sharded, their g² may be needed.
        rows: what this rank's layers saw; a layer that one rank did not call others may have called.
        layers: all that could have seen something.
    """
    ranks = dtensor.ranks_of(params)
    if ranks is None:
        return {module: (H, S) for module, (H, S, _) in rows.items()}
    parts: Seen = {module: _sums(module, layer, rows.get(module)) for module, layer in layers.items()}
    for param in pending:
        if dtensor.is_sharded(param):
            square = dtensor.zero_padded_rows(param, dtensor.local_tensor(_square(param)))
            parts[param] = gradient_means(square, uses[param][0].view)
    for param in params:
        for use in uses[param]:
            if dtensor.S_is_sharded(param, use.view):
                S = states[param][f"S{use.suffix}"]
                parts[param, use.suffix] = (dtensor.zero_padded_rows(param, dtensor.local_tensor(S)),)
    if not parts:
        return parts
    seen = dtensor.summed(parts, ranks)
    weights = torch.cat([seen[module][-1] for module in layers]).tolist() if layers else []
    for module, weight in zip(layers, weights, strict=True):
        H, S, _ = seen.pop(module)
        if weight:  # some rank called it
            seen[module] = (H / weight, S / weight)
    return seen


def _sums(module: nn.Module, layer: Layer, rows: Rows | None) -> tuple[Tensor, Tensor, Tensor]:
    """H and S summed over the rows of this rank, and their weight, [1]."""
    if rows is not None:
        return rows.H * rows.weight, rows.S * rows.weight, rows.H.new_full((1,), rows.weight)
    view, weight = layer.views["weight"], module._parameters["weight"]
    assert weight is not None
    H, S, count = (
        torch.zeros(size, dtype=factor_dtype(weight.dtype), device=weight.device)
        for size in (view.H_size, view.S_size, (1,))
    )
    return H, S, count


def fresh_factors(
    params: Sequence[Tensor],
    fallback: Sequence[Tensor],
    uses: Mapping[Tensor, Sequence[Use]],
    states: Mapping[Tensor, State],
    seen: Seen,
) -> list[Fresh]:
    """H and S of the uses that were seen; while none ever was, of parameters in ``fallback`` those of the gradient."""
    fresh = []
    for param in params:
        called = [use for use in uses[param] if use.module in seen]
        if called and not states[param]["captured"]:
            states[param]["captured"] = 1
            for use in uses[param]:  # the factors of the gradient have another scale
                states[param][f"refreshes{use.suffix}"] = 0
        fresh += [Fresh(param, use, *seen[use.module]) for use in called]
    pending = [param for param in fallback if not states[param]["captured"]]
    views = [uses[param][0].view for param in pending]
    means = [
        seen.get(param) or gradient_means(_square(param), view)
        for param, view in zip(pending, views, strict=True)
    ]
    sizes = torch.stack([S.mean() for _, S in means]).tolist() if means else []
    for param, view, (columns, S), size in zip(pending, views, means, sizes, strict=True):
        if size:  # a gradient of zero says nothing
            fresh.append(Fresh(param, uses[param][0], *gradient_factors(columns, S, view)))
    return fresh


def average(
    fresh: Sequence[Fresh],
    gammas: Mapping[Tensor, float],
    states: Mapping[Tensor, State],
    seen: Seen,
    rule: Rule,
) -> None:
    """Takes fresh factors into the averages of the states."""
    alike: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
    for param, use, H, S in fresh:
        state = states[param]
        state[f"refreshes{use.suffix}"] += 1
        old_H, old_S = averages(param, use, state, seen)
        key = (gammas[param], state[f"refreshes{use.suffix}"], old_H.device, old_H.dtype)
        olds, news = alike.setdefault(key, ([], []))
        olds += [old_H, old_S]
        news += [_one(old_H.device, old_H.dtype) if use.view.columns is None else H, S]
    for (gamma, count, _, dtype), (olds, news) in alike.items():
        rule.average(olds, [new.to(dtype) for new in news], gamma, count)
    for param, use, *_ in fresh:
        if dtensor.S_is_sharded(param, use.view):
            _, S = averages(param, use, states[param], seen)
            dtensor.local_tensor(states[param][f"S{use.suffix}"]).copy_(S[dtensor.rows(param)])


@cache
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.ones(1, device=device, dtype=dtype)


def averages(param: Tensor, use: Use, state: State, seen: Seen) -> Factors:
    """H and the whole of S: where that is sharded, from this refresh; without one all ranks take part in gathering."""
    H, S = state[f"H{use.suffix}"], state[f"S{use.suffix}"]
    if (param, use.suffix) in seen:
        return H, seen[param, use.suffix][0]
    if not state[f"refreshes{use.suffix}"]:  # as it was made, and no rank need be asked
        return H, H.new_ones(S.shape)
    return H, dtensor.full_tensor(S)


class Curvature(NamedTuple):
    """H' and S' of every use of a parameter: for all of it, and for the rows that are on this rank."""

    whole: list[Pair]
    local: list[Pair]


class Preconditioners:
    """H' and S' of parameters, which stay in the same memory from one refresh to the next.

    Args:
        uses: of each parameter, those that were refreshed; all on one device and of one precision.
    """

    def __init__(
        self, uses: Mapping[Tensor, Sequence[Use]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.uses = uses
        flat = [use.view for several in uses.values() for use in several]
        counts = [len(several) for several in uses.values()]
        self.H = Vectors([torch.Size(view.H_size).numel() for view in flat], counts, device, dtype)
        self.S = Vectors([torch.Size(view.S_size).numel() for view in flat], counts, device, dtype)
        pairs = iter(
            view.pair(H.view(view.H_size), S.view(view.S_size))
            for view, H, S in zip(flat, self.H.parts, self.S.parts, strict=True)
        )
        self.curvature: dict[Tensor, Curvature] = {}
        for param, several in uses.items():
            whole = [next(pairs) for _ in several]
            self.curvature[param] = Curvature(whole, self._cut(param, whole) or whole)

    def _cut(self, param: Tensor, whole: list[Pair]) -> list[Pair]:
        if not dtensor.is_sharded(param):
            return []
        return [dtensor.local_pair(param, self.uses[param][0].view, pair) for pair in whole]

    def refresh(self, factors: list[Factors], rule: Rule) -> None:
        """Normalises the averages of all uses."""
        for vectors, flat in zip((self.H, self.S), zip(*factors, strict=True), strict=True):
            torch.cat([factor.reshape(-1) for factor in flat], out=vectors.flat)
        rule.normalise(self.H, self.S)
        for param, (whole, local) in self.curvature.items():
            for old, new in zip(local, self._cut(param, whole), strict=False):
                for to, value in zip(old, new, strict=True):
                    if to.data_ptr() != value.data_ptr():  # a copy of rows, not a view of them
                        to.copy_(value)


def _square(param: Tensor) -> Tensor:
    """g², in the precision of factors."""
    grad = param.grad
    assert grad is not None
    return grad.detach().to(factor_dtype(grad.dtype)).square()
