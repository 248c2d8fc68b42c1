"""The update of orthogonal matrices: the polar factors of the momentum's blocks, all of one shape at a time.

m ← β m + (1 − β) g        n = β m + (1 − β) g        O = polar factor of each block of rows of n
u = O / √((S' + 0.1) (H' + 0.1))        θ ← (1 − η κ) θ − η 0.2 u / rms(u)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dtensor
from ._torch_private import foreach_lerp, foreach_lerp_, foreach_mul_, foreach_sub_
from .blocks import buckets_of, divisors_of, matrix_of
from .polar import polar_factor
from .preconditioners import Curvatures
from .state import Tracked, steps_of
from .update import TINY, UPDATE_RMS, precise

_TOGETHER = 2**24  # elements that are updated at a time: memory for three copies of them is needed

Block = tuple[int, int]
"""A parameter, as an index, and the row with which one of its blocks begins."""


class OrthogonalUpdate:
    """Updates orthogonal matrices, until `is_current` says that another one must be made.

    Args:
        tracked: all that have a gradient, of all groups.
        curvatures: what they are divided by, which stays where it is in memory.
    """

    def __init__(self, tracked: Sequence[Tracked], curvatures: Curvatures) -> None:
        self._batches = [_Batch(members, curvatures) for members in _together(tracked)]
        self.owners = [t.param for batch in self._batches for t in batch.tracked]
        """The parameters as the optimizer has them, which may be sharded."""
        self.is_sharded = any(dtensor.is_sharded(owner) for owner in self.owners)
        self._places = self._data_pointers()
        self._steps = steps_of([t for batch in self._batches for t in batch.tracked])
        self._updates: list[list[Tensor]] = []

    def _data_pointers(self) -> list[int]:
        return [dtensor.local_tensor(owner).data_ptr() for owner in self.owners]

    def is_current(self) -> bool:
        """Whether the parameters are where they were. That they have gradients is known of their groups."""
        return self._data_pointers() == self._places

    def count_step(self) -> None:
        """Adds one to the step of every parameter."""
        self._steps += 1

    def sum_of_squares(self) -> Tensor:
        """Σ u² over the rows of each parameter on this rank, [parameters]; the momentum takes in the gradient."""
        ahead = [batch.look_ahead() for batch in self._batches]
        parts: list[Any] = [
            batch.rows_of_straddling(n) for batch, n in zip(self._batches, ahead, strict=True)
        ]
        ranks = dtensor.ranks_of(self.owners)
        whole: Sequence[Any] = dtensor.sum_over_ranks(parts, ranks) if ranks else parts
        self._updates = [
            batch.directions(n, blocks) for batch, n, blocks in zip(self._batches, ahead, whole, strict=True)
        ]
        sums = [batch.sum_of_squares(us) for batch, us in zip(self._batches, self._updates, strict=True)]
        return torch.cat([part.to(sums[0].device) for part in sums])

    def normalized_update(self, sums: Tensor | None) -> None:
        """Takes the step, given Σ u² over all rows of each parameter where they are sharded."""
        if sums is None:
            for batch in self._batches:
                us = batch.directions(batch.look_ahead(), {})
                batch.apply(us, batch.sum_of_squares(us))
            return
        parts = sums.split([len(batch.tracked) for batch in self._batches])
        for batch, us, part in zip(self._batches, self._updates, parts, strict=True):
            batch.apply(us, part)
        self._updates = []


def _together(tracked: Sequence[Tracked]) -> list[list[Tracked]]:
    """Parameters that are updated together: of one group, one device and one type, those with equal rows first."""
    batches: dict[tuple[Any, ...], list[list[Tracked]]] = {}
    for t in sorted(tracked, key=lambda t: (t.param.numel() // sum(t.role.blocks), t.role.blocks)):
        of_kind = batches.setdefault((id(t.group), t.param.device, t.param.dtype), [[]])
        if sum(dtensor.local_tensor(other.param).numel() for other in of_kind[-1]) > _TOGETHER:
            of_kind.append([])
        of_kind[-1].append(t)
    return [batch for of_kind in batches.values() for batch in of_kind]


class _Batch:
    """Matrices whose blocks are multiplied together."""

    def __init__(self, tracked: Sequence[Tracked], curvatures: Curvatures) -> None:
        self.tracked = tracked
        self._group: Mapping[str, Any] = tracked[0].group
        self._curvatures = curvatures
        self._refreshes = -1
        self._matrices = [matrix_of(t) for t in tracked]
        self._buckets = buckets_of(self._matrices)
        self._straddling = [
            (owner, block)
            for owner, matrix in enumerate(self._matrices)
            for block in matrix.blocks()
            if matrix.straddles(block)
        ]
        self._params = self._views([t.param for t in tracked])
        self._exp_avgs = self._views([t.state["exp_avg"] for t in tracked])
        device, dtype = self._params[0].device, precise(self._params[0]).dtype
        owners = torch.tensor(
            [owner for bucket in self._buckets for owner in bucket.owners], dtype=torch.long
        )
        self._owners = owners.to(device)
        self._is_of = (self._owners == torch.arange(len(tracked), device=device)[:, None]).to(dtype)
        self._sizes = torch.tensor([t.param.numel() for t in tracked], dtype=dtype).to(device)

    def _views(self, tensors: Sequence[Any]) -> list[Tensor]:
        return [matrix.view(tensor) for matrix, tensor in zip(self._matrices, tensors, strict=True)]

    def look_ahead(self) -> list[Tensor]:
        """Takes the gradients into the momentum; returns n, [rows here, ...] of each parameter."""
        gs = [precise(g) for g in self._views([t.param.grad for t in self.tracked])]
        ms = [precise(m) for m in self._exp_avgs]
        weight = 1 - self._group["momentum"]
        foreach_lerp_(ms, gs, weight)
        _store(self._exp_avgs, ms)
        return list(foreach_lerp(ms, gs, weight))

    def rows_of_straddling(self, ahead: Sequence[Tensor]) -> dict[Block, tuple[Tensor]]:
        """The blocks that several ranks have rows of: zeros, but for the rows on this rank. [rows, columns] each."""
        found = {}
        for owner, block in self._straddling:
            matrix, n = self._matrices[owner], ahead[owner]
            rows = n.new_zeros(len(block), matrix.columns)
            own = matrix.own(block)
            param: Any = self.tracked[owner].param
            if own and dtensor.is_primary_replica(param):
                rows[own.start - block.start : own.stop - block.start] = n[self._local(owner, own)].flatten(1)
            found[owner, block.start] = (rows,)
        return found

    def directions(self, ahead: Sequence[Tensor], straddling: Mapping[Block, tuple[Tensor]]) -> list[Tensor]:
        """u of the blocks of each bucket, [blocks, rows, columns]; zero in rows of other ranks.

        Args:
            ahead: what `look_ahead` returned.
            straddling: all rows of the blocks that other ranks have rows of, too.
        """
        if self._refreshes != self._curvatures.refreshes:
            self._refreshes = self._curvatures.refreshes
            factors = [self._curvatures[t.param].full[0] for t in self.tracked]
            self._divisors = [divisors_of(bucket, self._matrices, factors) for bucket in self._buckets]
        directions = []
        for bucket, (rows, columns) in zip(self._buckets, self._divisors, strict=True):
            parts = [
                straddling[run.owner, run.rows.start][0]
                if run.straddles
                else ahead[run.owner][self._local(run.owner, run.rows)].flatten(1)
                for run in bucket.runs
            ]
            blocks = torch.cat(parts).view(-1, bucket.height, bucket.columns)
            directions.append(polar_factor(blocks).to(rows.dtype).div_(rows).div_(columns))
        return directions

    def sum_of_squares(self, directions: Sequence[Tensor]) -> Tensor:
        """Σ u² over the rows of each parameter on this rank, [parameters]."""
        norms = [torch.linalg.vector_norm(u, dim=(1, 2)) for u in directions]
        squares = torch.cat(norms).square() if norms else self._is_of.new_zeros(0)
        return self._is_of @ squares

    def apply(self, directions: Sequence[Tensor], sums: Tensor) -> None:
        """θ ← (1 − η κ) θ − η 0.2 u / rms(u), given Σ u² of each parameter."""
        group = self._group
        lr = float(group["lr"])
        sign = -1 if group["maximize"] else 1
        rms = (sums.to(self._sizes.device) / self._sizes).sqrt()
        steps = (sign * lr * UPDATE_RMS / rms.clamp(min=TINY))[self._owners]
        thetas = [precise(param) for param in self._params]
        if group["weight_decay"]:
            foreach_mul_(thetas, 1 - lr * group["weight_decay"])
        targets, updates = [], []
        of_buckets = steps.split([len(u) for u in directions])
        for bucket, u, step in zip(self._buckets, directions, of_buckets, strict=True):
            rows = u.mul_(step[:, None, None]).flatten(0, 1)
            at = 0
            for run in bucket.runs:
                own = self._matrices[run.owner].own(run.rows)
                target = thetas[run.owner][self._local(run.owner, own)]
                first = at + own.start - run.rows.start
                targets.append(target)
                updates.append(rows[first : first + len(own)].view(target.shape))
                at += len(run.rows)
        if targets:
            foreach_sub_(targets, updates)
        _store(self._params, thetas)

    def _local(self, owner: int, rows: range) -> slice:
        """Rows of a whole matrix among those on this rank."""
        first = self._matrices[owner].here.start
        return slice(rows.start - first, rows.stop - first)


def _store(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes values back to where `precise` made copies of."""
    for target, value in zip(targets, values, strict=True):
        if target is not value:
            target.copy_(value)
