"""Parameters that FSDP shards: which of their rows are here, and what this rank adds to a sum over all ranks.

Rows are entries of axis 0, the only axis that FSDP2 shards unless it is told otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # its import takes a second, and only sharded models need it
    from torch.distributed.tensor import DTensor

from trainer.optim.adafisher.layers import View

Key = TypeVar("Key", bound=Hashable)


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor, which none is before their module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether ranks hold different rows.

    Raises:
        RuntimeError: it is sharded along another axis.
    """
    if not is_dtensor(tensor):
        return False
    if any((p.is_shard() and not p.is_shard(0)) or p.is_partial() for p in tensor.placements):
        raise RuntimeError(
            f"AdaFisher needs parameters that are sharded along axis 0, not {tuple(tensor.placements)}"
        )
    return any(p.is_shard() for p in tensor.placements)


def local_tensor(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def rows(param: DTensor) -> slice:
    """The rows of a sharded parameter that this rank holds."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    first = min(offset[0], param.shape[0])
    return slice(first, first + shape[0])


def is_primary_replica(param: DTensor) -> bool:
    """Whether this rank is_primary_replica for its rows: of the ranks that hold the same ones, one does."""
    coordinate = param.device_mesh.get_coordinate()
    assert coordinate is not None
    return not any(
        index
        for index, placement in zip(coordinate, param.placements, strict=True)
        if not placement.is_shard()
    )


def zero_padded_rows(param: DTensor, part: Tensor) -> Tensor:
    """Rows of this rank at their place among all rows, the others zero; all zero off the primary replica."""
    full = part.new_zeros(param.shape[0], *part.shape[1:])
    if is_primary_replica(param):
        full[rows(param)] = part
    return full


def shard_like(param: DTensor, full: Tensor) -> DTensor:
    """A tensor with as many rows as the parameter, sharded like it."""
    from torch.distributed.tensor import DTensor

    part = full[rows(param)].clone()
    return DTensor.from_local(
        part, param.device_mesh, param.placements, run_check=False, shape=full.shape, stride=full.stride()
    )


# Views of a parameter, cut to its rows -------------------------------------------------------------------------


def _splits_rows(param: Tensor, view: View) -> bool:
    """Whether the view has two axes, groups and the rows of each, where the parameter has one."""
    return len(view.shape) == param.dim() + 1


def local_shape(param: DTensor, view: View) -> tuple[int, ...]:
    """The shape of the view for the rows that are here, groups and rows in one axis."""
    here = rows(param)
    return (here.stop - here.start, *view.shape[1 + _splits_rows(param, view) :])


def local_pair(param: DTensor, view: View, pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """H and S, in shapes that broadcast against the whole view, for the rows that are here."""
    here = rows(param)
    if not _splits_rows(param, view):
        H, S = (f if f.shape[0] == 1 else f[here] for f in pair)
        return H, S
    index = torch.arange(here.start, here.stop, device=pair[0].device)
    group, row = index // view.shape[1], index % view.shape[1]

    def cut(factor: Tensor) -> Tensor:
        if factor.shape[:2] == (1, 1):
            return factor[0]
        return factor[group if factor.shape[0] > 1 else 0, row if factor.shape[1] > 1 else 0]

    return cut(pair[0]), cut(pair[1])


def S_is_sharded(param: Tensor, view: View) -> TypeGuard[DTensor]:
    """Whether S has an entry for each row, and is sharded with them."""
    leading = view.S[0] * view.S[1] if _splits_rows(param, view) else view.S[0] if view.S else 0
    return is_sharded(param) and view.S_size == (param.shape[0],) and leading == param.shape[0]


# Over ranks -----------------------------------------------------------------------------------------------------


class ReduceGroup(NamedTuple):
    """The ranks that train the same model on different data, and the device on which they can sum."""

    group: dist.ProcessGroup
    device: torch.device


def ranks_of(params: Sequence[Tensor]) -> ReduceGroup | None:
    """The ranks of the mesh that the parameters are on; else all ranks. None for a single one."""
    if not params or not (dist.is_available() and dist.is_initialized()):
        return None
    mesh = next((p.device_mesh for p in params if is_dtensor(p)), None)
    size = dist.get_world_size() if mesh is None else mesh.size()
    if size == 1:
        return None
    if mesh is None or size == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = mesh.get_group() if mesh.ndim == 1 else mesh._flatten().get_group()
    assert group is not None
    return ReduceGroup(group, params[0].device if mesh is None else torch.device(mesh.device_type))


def summed(parts: Mapping[Key, tuple[Tensor, ...]], ranks: ReduceGroup) -> dict[Key, tuple[Tensor, ...]]:
    """Sums tensors over ranks, all of them by one all-reduce of their numbers in a row.

    Args:
        parts: the same keys in the same order, with tensors of the same shapes, on every rank.
    """
    tensors = [tensor for several in parts.values() for tensor in several]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    flat = torch.cat([t.reshape(-1).to(ranks.device, dtype) for t in tensors])
    dist.all_reduce(flat, group=ranks.group)
    pieces = flat.split([t.numel() for t in tensors])
    sums = iter([p.view(t.shape).to(t.device, t.dtype) for p, t in zip(pieces, tensors, strict=True)])
    return {key: tuple(next(sums) for _ in several) for key, several in parts.items()}


def total(values: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Sums a value of each parameter, [parameters], over the ranks that hold different rows of it."""
    ranks = ranks_of(params)
    sharded = [is_sharded(param) for param in params]
    if ranks is None or not any(sharded):
        return values
    speaking = [is_sharded(param) and is_primary_replica(param) for param in params]
    ((sums,),) = summed({0: (values * values.new_tensor(speaking),)}, ranks).values()
    return torch.where(torch.tensor(sharded, device=values.device), sums, values)
