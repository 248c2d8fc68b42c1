"""What the parts of a run take on each rank: as they are here, and as they would be on more ranks."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed.dtensor import local_tensor
from trainer.optim.ema import EMA

FACTORS = re.compile(r"[HS](_\d+)?")
"""Names of AdaFisher's factors in its state; H is whole on every rank."""


class TensorShare(NamedTuple):
    """A tensor, and the rows by which FSDP cuts it up: 0 if every rank holds all of it."""

    tensor: Tensor
    rows: int

    def bytes_here(self) -> int:
        part = local_tensor(self.tensor)
        return part.numel() * part.element_size()

    def bytes_in(self, shards: int) -> int:
        """The largest of so many shards."""
        whole = self.tensor.numel() * self.tensor.element_size()
        return whole // self.rows * math.ceil(self.rows / shards) if self.rows else whole


Parts = dict[str, list[TensorShare]]


def parts_of(model: nn.Module, optimizer: Optimizer, ema: EMA | None) -> Parts:
    """All tensors that a run keeps between two steps, and the gradients, which are as large as what is trained."""
    parameters = dict(model.named_parameters())
    averages = ema.average if ema else {}
    states = [(p, key, value) for p, state in optimizer.state.items() for key, value in state.items()]
    tensors = [(p, key, value) for p, key, value in states if isinstance(value, Tensor)]
    parts = {
        "parameters": [TensorShare(p, rows(p)) for p in parameters.values()],
        "buffers": [TensorShare(buffer, 0) for buffer in model.buffers()],
        "gradients": [TensorShare(p, rows(p)) for p in parameters.values() if p.requires_grad],
        "optimizer state": [sharded_like(p, v) for p, key, v in tensors if not FACTORS.fullmatch(key)],
        "Fisher factors": [
            TensorShare(v, 0) if key[0] == "H" else sharded_like(p, v)
            for p, key, v in tensors
            if FACTORS.fullmatch(key)
        ],
        "averaged weights": [
            TensorShare(tensor, rows(tensor) if name in parameters else 0)
            for name, tensor in averages.items()
        ],
    }
    return {name: held for name, held in parts.items() if held}


def rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 0


def sharded_like(parameter: Tensor, state: Tensor) -> TensorShare:
    """Optimizer state, which is cut up like its parameter where it has as many rows."""
    return TensorShare(state, rows(parameter) if rows(state) == rows(parameter) else 0)


def mebibytes(parts: Parts, size: Callable[[TensorShare], int]) -> dict[str, float]:
    """Of each part, and of all."""
    sizes = {name: sum(map(size, held)) / 2**20 for name, held in parts.items()}
    return {**sizes, "all of these": sum(sizes.values())}
