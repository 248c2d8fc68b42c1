"""Parameters that FSDP shards: which of their rows this rank holds, and what it adds to a sum over all ranks.

Rows are entries of axis 0, the only axis that FSDP2 shards by default.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from ._torch_private import flattened, local_shape_and_offset
from .views import Pair, View

if TYPE_CHECKING:  # its import takes a second, and only sharded models need it
    from torch.distributed.tensor import DTensor


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
    """The rows that this rank holds of a DTensor; any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All rows of a DTensor, for which all of its ranks must call this; any other tensor itself."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def rows(param: DTensor) -> slice:
    """The rows of a sharded parameter that this rank holds."""
    shape, offset = local_shape_and_offset(param)
    first = min(offset[0], param.shape[0])
    return slice(first, first + shape[0])


def first_rows(param: DTensor) -> set[int]:
    """The rows with which the shards of a parameter begin, of all ranks."""
    shards = [range(param.shape[0])]
    for count, placement in zip(param.device_mesh.shape, param.placements, strict=True):
        if placement.is_shard():  # into equal parts but for the last ones, as torch.chunk does
            lengths = [-(-len(shard) // count) for shard in shards]
            shards = [
                shard[i * length : (i + 1) * length]
                for shard, length in zip(shards, lengths, strict=True)
                for i in range(count)
            ]
    return {shard.start for shard in shards}


def is_primary_replica(param: DTensor) -> bool:
    """Whether this rank is the first of those that hold the same rows; in a sum over ranks it alone counts them."""
    coordinate = param.device_mesh.get_coordinate()
    assert coordinate is not None
    return not any(
        index
        for index, placement in zip(coordinate, param.placements, strict=True)
        if not placement.is_shard()
    )


def zero_padded_rows(param: DTensor, part: Tensor) -> Tensor:
    """All rows of a tensor of which this rank holds ``part``: the others are zero, all are off the primary replica."""
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


def S_is_sharded(param: Tensor, view: View) -> TypeGuard[DTensor]:
    """Whether S has an entry for each row, and is sharded with them."""
    return is_sharded(param) and view.S_has_rows(param)


# Views of a parameter, reduced to the rows on this rank ---------------------------------------------------------


def local_shape(param: Tensor, view: View) -> tuple[int, ...]:
    """The shape of the view for the rows on this rank; where only some are, groups and their rows are one axis."""
    if not is_sharded(param):
        return view.shape
    here = rows(param)
    return (here.stop - here.start, *view.shape[view.row_axes :])


def local_pair(param: DTensor, view: View, pair: Pair) -> Pair:
    """H and S, in shapes that broadcast against the full view, for the rows on this rank."""
    here = rows(param)
    if view.row_axes == 1:
        H, S = (factor if factor.shape[0] == 1 else factor[here] for factor in pair)
        return H, S
    index = torch.arange(here.start, here.stop, device=pair[0].device)
    group, row = index // view.shape[1], index % view.shape[1]

    def of_these(factor: Tensor) -> Tensor:
        if factor.shape[:2] == (1, 1):
            return factor[0]
        return factor[group if factor.shape[0] > 1 else 0, row if factor.shape[1] > 1 else 0]

    return of_these(pair[0]), of_these(pair[1])


# Sums over ranks ------------------------------------------------------------------------------------------------


class ReduceGroup(NamedTuple):
    """The ranks that train the same model on different data, and the device on which they can sum."""

    group: dist.ProcessGroup
    device: torch.device


def ranks_of(params: Sequence[Tensor]) -> ReduceGroup | None:
    """The ranks of the mesh that the parameters are on; without a mesh all ranks. None for a single one."""
    if not params or not (dist.is_available() and dist.is_initialized()):
        return None
    mesh = next((p.device_mesh for p in params if is_dtensor(p)), None)
    size = dist.get_world_size() if mesh is None else mesh.size()
    if size == 1:
        return None
    if mesh is None or size == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = mesh.get_group() if mesh.ndim == 1 else flattened(mesh).get_group()
    assert group is not None
    return ReduceGroup(group, params[0].device if mesh is None else torch.device(mesh.device_type))


Tensors = dict[Any, tuple[Tensor, ...]]


def sum_over_ranks(mappings: Sequence[Tensors], ranks: ReduceGroup) -> list[Tensors]:
    """Sums tensors over ranks, all of them in one all-reduce.

    Args:
        mappings: the same keys in the same order, with tensors of the same shapes, on every rank.

    Returns:
        the mappings, with sums for tensors.
    """
    tensors = [tensor for mapping in mappings for several in mapping.values() for tensor in several]
    if not tensors:
        return [{} for _ in mappings]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    flat = torch.cat([t.reshape(-1).to(ranks.device, dtype) for t in tensors])
    dist.all_reduce(flat, group=ranks.group)
    parts = zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)
    sums = (part.view(t.shape).to(t.device, t.dtype) for part, t in parts)
    return [
        {key: tuple(next(sums) for _ in several) for key, several in mapping.items()} for mapping in mappings
    ]


def sum_over_shards(values: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Sums a value of each parameter, [parameters], over the ranks that hold different rows of it."""
    ranks = ranks_of(params)
    sharded = [is_sharded(param) for param in params]
    if ranks is None or not any(sharded):
        return values
    is_counted, is_summed = (  # without waiting for the device
        torch.tensor(mask).to(values.device, non_blocking=True)
        for mask in ([is_sharded(param) and is_primary_replica(param) for param in params], sharded)
    )
    ((sums,),) = sum_over_ranks([{0: (values * is_counted,)}], ranks)[0].values()
    return torch.where(is_summed, sums, values)
