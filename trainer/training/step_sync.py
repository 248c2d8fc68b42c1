"""The all-reduce of a training step: what every rank must know before the parameters change."""

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.distributed.ranks import Ranks
from trainer.signals import StopSignal


@dataclass(frozen=True)
class Requests:
    """What a rank wants to be done after the step."""

    save: bool = False
    """A checkpoint; only that of the first rank counts."""
    stop: signal.Signals | None = None
    """The signal that the rank has received; that of any rank counts."""
    end: bool = False
    """The end of the run, for a callback; that of any rank counts."""


@dataclass(frozen=True)
class StepResults:
    """What one rank saw in a step."""

    losses: Tensor
    """Of its micro-batches, [M]."""
    totals: Tensor
    """Of their metrics, [n]."""
    squared_norm: Tensor
    """This rank's share of the squared norm of the gradient, a scalar."""
    seconds: float
    """Training time since the last synchronisation; that of the first rank counts."""
    requests: Requests


@dataclass(frozen=True)
class StepSync:
    """What all ranks together saw in a step, the same on each of them."""

    totals: Tensor
    """Of the training metrics over all ranks, float64 [n], on the CPU."""
    grad_norm: float
    losses_finite: bool
    """Whether every loss of every rank is finite."""
    seconds: float
    """Training time since the last synchronisation, by the first rank's clock."""
    requests: Requests

    @property
    def finite(self) -> bool:
        """Whether losses and gradient are finite on all ranks."""
        return self.losses_finite and math.isfinite(self.grad_norm)


def precise_dtype(device: torch.device) -> torch.dtype:
    """The widest floats of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def sync_step(ranks: Ranks, own: StepResults, buffers: Sequence[Tensor]) -> StepSync:
    """Sums over all ranks what each of them saw in a step, and averages the buffers, all in one all-reduce.

    Args:
        ranks: every one of them calls this.
        own: this rank's results.
        buffers: floating-point tensors that depend on the data, such as running statistics; averaged in place.
    """
    device = own.losses.device
    precise = precise_dtype(device)
    clock = [own.seconds, float(own.requests.save)] if ranks.is_rank0 else [0.0, 0.0]
    averaged = list(buffers) if ranks.world_size > 1 else []
    sent = [
        (~own.losses.isfinite()).sum(),
        own.squared_norm,
        torch.tensor(clock, dtype=precise),
        torch.tensor([*one_hot(own.requests.stop), float(own.requests.end)], dtype=precise),
        own.totals,
        *averaged,
    ]
    summed = ranks.sum(torch.cat([part.to(device, precise).flatten() for part in sent]))

    count = sum(part.numel() for part in averaged)
    known, means = summed.split([summed.numel() - count, count])
    for buffer, mean in zip(averaged, means.split([b.numel() for b in averaged]), strict=True):
        buffer.copy_(mean.view_as(buffer) / ranks.world_size)
    sizes = [1, 1, len(clock), len(StopSignal.SIGNALS), 1, own.totals.numel()]
    bad, square, clock_sum, signal_sum, ends, totals = known.cpu().double().split(sizes)
    seconds, save = clock_sum.tolist()
    return StepSync(
        totals=totals,
        grad_norm=math.sqrt(square) if square >= 0 else math.nan,
        losses_finite=not bad,
        seconds=seconds,
        requests=Requests(save=save > 0, stop=first_received(signal_sum), end=ends.item() > 0),
    )


def received_by_any(ranks: Ranks, received: signal.Signals | None) -> signal.Signals | None:
    """The signal that one of the ranks has received, the same on all of them; every rank calls it."""
    return first_received(ranks.sum(torch.tensor(one_hot(received))))


def one_hot(received: signal.Signals | None) -> list[float]:
    """A 1 in the place of the signal in `StopSignal.SIGNALS`, elsewhere 0."""
    return [float(received == number) for number in StopSignal.SIGNALS]


def first_received(counts: Tensor) -> signal.Signals | None:
    """The first signal that a rank has received; of the sum of all ranks' `one_hot`."""
    return next((number for number, n in zip(StopSignal.SIGNALS, counts.tolist(), strict=True) if n), None)
