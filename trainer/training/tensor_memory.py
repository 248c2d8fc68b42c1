"""The memory that the tensors of a run take on each rank: as they are, and as they would be on more ranks."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed.dtensor import local_tensor
from trainer.optim.ema import EMA
from trainer.optim.protocols import CurvatureOptimizer


class TensorShare(NamedTuple):
    """A tensor, and the rows by which FSDP shards it: 0 if every rank holds all of it."""

    tensor: Tensor
    rows: int

    def bytes_here(self) -> int:
        """What this rank holds of it."""
        part = local_tensor(self.tensor)
        return part.numel() * part.element_size()

    def bytes_in(self, shards: int) -> int:
        """The size of the largest of that many shards."""
        total = self.tensor.numel() * self.tensor.element_size()
        return total // self.rows * math.ceil(self.rows / shards) if self.rows else total


Tensors = dict[str, list[TensorShare]]
"""By what they are for."""


def tensors_of(model: nn.Module, optimizer: Optimizer, ema: EMA | None) -> Tensors:
    """The tensors that a run keeps between two steps, and the gradients, which are as large as what is trained."""
    parameters = dict(model.named_parameters())
    averages = ema.average if ema else {}
    state = list(state_of(optimizer))
    tensors = {
        "parameters": [TensorShare(p, rows(p)) for p in parameters.values()],
        "buffers": [TensorShare(buffer, 0) for buffer in model.buffers()],
        "gradients": [TensorShare(p, rows(p)) for p in parameters.values() if p.requires_grad],
        "optimizer state": [share for share, is_factor in state if not is_factor],
        "curvature factors": [share for share, is_factor in state if is_factor],
        "averaged weights": [
            TensorShare(tensor, rows(tensor) if name in parameters else 0)
            for name, tensor in averages.items()
        ],
    }
    return {name: shares for name, shares in tensors.items() if shares}


def state_of(optimizer: Optimizer) -> Iterator[tuple[TensorShare, bool]]:
    """The tensors of an optimizer's state, each with whether it is a factor of the curvature."""
    for param, state in optimizer.state.items():
        layout = optimizer.state_layout(param) if isinstance(optimizer, CurvatureOptimizer) else {}
        for key, value in state.items():
            known = layout.get(key)
            for tensor in value if isinstance(value, list) else [value]:  # L-BFGS has lists
                if isinstance(tensor, Tensor):
                    sharded = known.is_sharded if known else rows(tensor) == rows(param)
                    yield TensorShare(tensor, rows(tensor) if sharded else 0), bool(known and known.is_factor)


def rows(tensor: Tensor) -> int:
    """The size of axis 0, along which FSDP shards; 0 without axes."""
    return tensor.shape[0] if tensor.ndim else 0


def mebibytes(tensors: Tensors, size: Callable[[TensorShare], int]) -> dict[str, float]:
    """The MiB of each kind, and of all together.

    Args:
        tensors: by what they are for.
        size: the bytes that are counted of each.
    """
    sizes = {name: sum(map(size, shares)) / 2**20 for name, shares in tensors.items()}
    return {**sizes, "all of these": sum(sizes.values())}
