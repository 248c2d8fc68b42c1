"""What all ranks must know alike of a training step, in one all-reduce."""

import math
import signal
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed.ranks import Ranks
from trainer.signals import StopSignal


@dataclass(frozen=True)
class StepSync:
    totals: Tensor
    """Of the training metrics over all ranks, float64 [n], on the CPU."""
    grad_norm: float
    losses_finite: bool
    """Whether every loss of every rank is finite."""
    seconds: float
    """Training time since the last agreement, by the first rank's clock."""
    save: bool
    """The first rank wants a checkpoint."""
    stop: signal.Signals | None
    """A signal that some rank has received."""

    @property
    def finite(self) -> bool:
        return self.losses_finite and math.isfinite(self.grad_norm)


def sync_step(
    ranks: Ranks,
    *,
    losses: Tensor,
    totals: Tensor,
    squared_norm: Tensor,
    seconds: float,
    save: bool,
    stop: signal.Signals | None,
    buffers: list[Tensor],
) -> StepSync:
    """Adds up over all ranks what each of them saw in a step; averages the buffers, in place.

    Args:
        losses: of this rank's micro-batches, [M].
        totals: of their metrics, [n].
        squared_norm: this rank's share of that of the gradient, a scalar.
        seconds, save: those of the first rank count.
        stop: the signal that this rank has received.
        buffers: floating-point tensors that depend on the data, such as running statistics.
    """
    device = losses.device
    precise = torch.float32 if device.type == "mps" else torch.float64
    signals = [float(stop == number) for number in StopSignal.SIGNALS]
    clock = torch.tensor([seconds * ranks.is_rank0, float(save and ranks.is_rank0), *signals], dtype=precise)
    averaged = buffers if ranks.world_size > 1 else []
    parts = [(~losses.isfinite()).sum(), squared_norm, clock, totals, *averaged]
    summed = ranks.sum(torch.cat([part.to(device, precise).flatten() for part in parts]))

    known, *means = summed.split([4 + len(signals) + len(totals), *map(Tensor.numel, averaged)])
    for buffer, mean in zip(averaged, means, strict=True):
        buffer.copy_(mean.view_as(buffer) / ranks.world_size)
    known = known.cpu().double()
    bad, square, elapsed, due, *received = known[: 4 + len(signals)].tolist()
    return StepSync(
        known[4 + len(signals) :],
        math.sqrt(square) if square >= 0 else math.nan,
        losses_finite=not bad,
        seconds=elapsed,
        save=due > 0,
        stop=next((s for s, count in zip(StopSignal.SIGNALS, received, strict=True) if count), None),
    )
