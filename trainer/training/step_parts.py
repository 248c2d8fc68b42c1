"""Where the time of a step goes, for ``profile=parts``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepParts:
    """Adds up the seconds of the parts of steps. On a GPU, which works behind the program, each part waits for it.

    Args:
        device: that trains.
        on: whether to measure; else nothing is.
    """

    def __init__(self, device: torch.device, *, on: bool) -> None:
        self.device = device
        self.on = on
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A context that is a part of a step, one of `trainer.metrics.STEP_PARTS`."""
        if not self.on:
            yield
            return
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by part."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
