"""Tensors that FSDP may have sharded, for code that does not care whether it did."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def local_tensor(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank: all of it, or its shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank takes part in gathering a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
