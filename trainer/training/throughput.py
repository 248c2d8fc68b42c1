"""What the machine does during a run: speed and memory."""

import resource

import torch


class SampleRate:
    """Training samples per second since it was last asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        self.samples += self.batch_size
        self.seconds += seconds

    def take(self) -> float:
        rate = self.samples / max(self.seconds, 1e-9)
        self.samples, self.seconds = 0, 0.0
        return rate


def memory_mib(device: torch.device) -> float:
    """Peak memory so far: the device's allocations, on a CPU the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
