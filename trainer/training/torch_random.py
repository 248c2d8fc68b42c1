"""Torch's random numbers a second time, for optimizers that take several gradients of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TorchRandom:
    """The state of torch's random numbers where it is made, to draw the same ones again.

    Args:
        device: whose random numbers count besides those of the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.gpu = [torch.cuda.get_rng_state(one) for one in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """A context in which they are drawn again, and after which they go on as without it."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            for state, device in zip(self.gpu, self.devices, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
