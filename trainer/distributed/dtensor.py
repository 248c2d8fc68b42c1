"""Tensors that FSDP may have sharded, for code that does not care whether it did."""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:  # its import takes a second
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor, which none is before their module is imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this rank: all of it, or its shard."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from its shards: every rank calls it."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor
