"""The updates that a step is made of: one for the matrices that are orthogonalised, for the rest one of each group.

A group on several devices has one for each of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import dtensor
from .group_update import GroupUpdate
from .preconditioners import Curvatures
from .state import Tracked
from .update_orthogonal import OrthogonalUpdate

Update = GroupUpdate | OrthogonalUpdate


def make_updates(
    groups: Sequence[dict[str, Any]], tracked: Sequence[Tracked], curvatures: Curvatures, **options: Any
) -> list[Update]:
    """The updates of parameters that have a gradient; ``options`` are those of `GroupUpdate`."""
    orthogonal = [t for t in tracked if t.role.name == "orthogonal"]
    others = [t for t in tracked if t.role.name != "orthogonal"]
    updates: list[Update] = [
        GroupUpdate(group, members, curvatures, **options)
        for group in groups
        for members in by_device([t for t in others if t.group is group])
    ]
    return [*updates, OrthogonalUpdate(orthogonal, curvatures)] if orthogonal else updates


def by_device(tracked: Sequence[Tracked]) -> list[list[Tracked]]:
    """The parameters of each device; one empty list if there are none."""
    devices: dict[torch.device, list[Tracked]] = {}
    for t in tracked:
        devices.setdefault(t.param.device, []).append(t)
    return [*devices.values()] or [[]]


def take_step(updates: Sequence[Update], *, normalized: bool) -> None:
    """Updates all parameters, and counts the step; all ranks must call this.

    Args:
        normalized: whether updates have a length of their own, which of sharded parameters is a sum over ranks.
    """
    for update in updates:
        update.count_step()
    updates = [update for update in updates if update.owners]
    if not normalized:
        for update in updates:
            assert isinstance(update, GroupUpdate)  # no rule is orthogonal and not normalized
            update.bias_corrected_update()
        return
    sums: list[Tensor | None] = [None] * len(updates)
    if any(update.is_sharded for update in updates):
        parts = [update.sum_of_squares() for update in updates]
        local = torch.cat([part.to(parts[0].device) for part in parts])
        total = dtensor.sum_over_shards(local, [param for update in updates for param in update.owners])
        of_updates = total.split([len(part) for part in parts])
        sums = [of.to(part.device) for of, part in zip(of_updates, parts, strict=True)]
    for update, of_update in zip(updates, sums, strict=True):
        update.normalized_update(of_update)
