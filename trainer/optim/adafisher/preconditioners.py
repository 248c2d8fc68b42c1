"""H' and S': the normalized averages, by which updates are divided until the next refresh."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import dtensor
from .marginals import divisors
from .refresh import FullS, averages
from .roles import Role
from .rules import Rule
from .state import Tracked, Use
from .vectors import Vectors
from .views import Pair, View


class Curvature(NamedTuple):
    """What preconditions a parameter; refreshed in place."""

    full: Sequence[Pair]
    """H' and S' of every use, or what the parameter's role makes of them."""
    local: Sequence[Pair]
    """The same for the rows that this rank holds."""
    expected: Tensor
    """At least what rms(u) is for a gradient whose rows have random signs, []; nan if that is not known."""


class Curvatures:
    """The curvature of every parameter since its last refresh: a cache of what follows from the optimizer's state."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.refreshes = 0
        """How often anything was refreshed."""
        self._by_param: dict[Tensor, Curvature] = {}
        self._batches: dict[tuple[torch.device, torch.dtype], _Batch] = {}

    def __contains__(self, param: Tensor) -> bool:
        return param in self._by_param

    def __getitem__(self, param: Tensor) -> Curvature:
        return self._by_param[param]

    def clear(self) -> None:
        """Forgets all."""
        self._by_param.clear()
        self._batches.clear()

    def refresh(self, tracked: Sequence[Tracked], full_S: FullS) -> bool:
        """Normalizes the averages of parameters anew.

        Args:
            full_S: of sharded parameters; all ranks must call this to gather what is missing.

        Returns:
            whether the curvature of any parameter lies elsewhere in memory than before.
        """
        self.refreshes += 1
        moved = False
        batches: dict[tuple[torch.device, torch.dtype], list[Tracked]] = {}
        for t in tracked:
            H = t.state["H"]
            batches.setdefault((H.device, H.dtype), []).append(t)
        for key, members in batches.items():
            uses = {t.param: t.refreshed_uses for t in members}
            if key not in self._batches or self._batches[key].uses != uses:
                self._batches[key] = _Batch(uses, [t.role for t in members], *key)
                self._by_param |= self._batches[key].curvature
                moved = True
            self._batches[key].refresh(members, full_S, self._rule)
        return moved


class _Batch:
    """H' and S' of parameters on one device and of one precision, which stay at their places in memory.

    Args:
        uses: of each parameter, those that were refreshed.
        roles: of each parameter.
    """

    def __init__(
        self,
        uses: Mapping[Tensor, Sequence[Use]],
        roles: Sequence[Role],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.uses = uses
        views = [use.view for several in uses.values() for use in several]
        counts = [len(several) for several in uses.values()]
        self.H = Vectors([torch.Size(view.H_size).numel() for view in views], counts, device, dtype)
        self.S = Vectors([torch.Size(view.S_size).numel() for view in views], counts, device, dtype)
        self.expected = torch.full((len(uses),), math.nan, device=device, dtype=dtype)
        self.own = torch.cat([_own_columns(view) for view in views]).to(device, dtype)
        self.own_counts = torch.stack([_own_columns(view).sum() for view in views]).to(device, dtype)
        self.row_weights: list[float] = []
        self.dampings: list[float] = []
        pairs = iter(
            view.pair(H.view(view.H_size), S.view(view.S_size))
            for view, H, S in zip(views, self.H.parts, self.S.parts, strict=True)
        )
        self.curvature: dict[Tensor, Curvature] = {}
        self.derived: list[tuple[Sequence[Pair], Role, Sequence[Pair], View]] = []
        """What roles make of H' and S', the roles, these, and how they are seen."""
        self.is_rooted = torch.tensor([role.name == "rooted" for role in roles], device=device)
        for (param, several), role, expected in zip(uses.items(), roles, self.expected.unbind(), strict=True):
            full: Sequence[Pair] = [next(pairs) for _ in several]
            if role.name != "calibrated":
                view = several[0].view
                self.derived.append((divisors(role, full, view), role, full, view))
                full = self.derived[-1][0]
            self.curvature[param] = Curvature(full, self._local(param, full) or full, expected)

    def _local(self, param: Tensor, full: Sequence[Pair]) -> Sequence[Pair]:
        if not dtensor.is_sharded(param):
            return []
        return [dtensor.local_pair(param, self.uses[param][0].view, pair) for pair in full]

    def refresh(self, tracked: Sequence[Tracked], full_S: FullS, rule: Rule) -> None:
        by_param = {t.param: t for t in tracked}
        uses = [(by_param[param], use) for param, several in self.uses.items() for use in several]
        factors = [averages(t, use, full_S) for t, use in uses]
        for vectors, flat in zip((self.H, self.S), zip(*factors, strict=True), strict=True):
            torch.cat([factor.reshape(-1) for factor in flat], out=vectors.flat)
        if rule.normalize_update:
            row_weights = [t.state[f"row_weight{use.suffix}"] for t, use in uses]
            self._set_expected(row_weights, [by_param[param].damping for param in self.uses])
        rule.normalize(self.H, self.S)
        for full, role, pairs, view in self.derived:
            _copy(full, divisors(role, pairs, view))
        for param, (full, local, _) in self.curvature.items():
            _copy(local, self._local(param, full))

    def _set_expected(self, row_weights: list[float], dampings: list[float]) -> None:
        """√mean G / max(F + λ), as in `reference`, with a bound of the maximum, before H and S are normalized.

        Args:
            row_weights: of every use.
            dampings: of every parameter.
        """
        if (row_weights, dampings) != (self.row_weights, self.dampings):
            self.row_weights, self.dampings = row_weights, dampings
            self._row_weights, self._dampings = (
                torch.tensor(values, dtype=self.expected.dtype).to(self.expected.device, non_blocking=True)
                for values in (row_weights, dampings)
            )
        h, s = self.H.reduce("mean"), self.S.reduce("mean")
        own_h, own_max = self.H.reduce("sum", self.own) / self.own_counts, self.H.reduce("max", self.own)
        square = self.H.sum_by_param(self._row_weights * s * own_h)
        mean = self.H.sum_by_param(s * h).clamp_(min=torch.finfo(h.dtype).tiny)
        largest = self.H.sum_by_param(self.S.reduce("max") * own_max) / mean
        largest = torch.where(self.is_rooted, largest.sqrt(), largest) + self._dampings
        self.expected.copy_(torch.where(square > 0, square.sqrt() / largest, math.nan))


def _copy(targets: Sequence[Pair], values: Sequence[Pair]) -> None:
    """Copies pairs to where those of the last refresh are; nothing if there are no values."""
    for target, value in zip(targets, values, strict=False):
        for to, new in zip(target, value, strict=True):
            if to.data_ptr() != new.data_ptr():  # a copy of rows, not a view of them
                to.copy_(new)


def _own_columns(view: View) -> Tensor:
    """1 for every entry of H that is the parameter's own, 0 for those of others, flat."""
    own = torch.zeros(view.H_size)
    own[..., slice(None) if view.columns is None else view.columns] = 1
    return own.flatten()
