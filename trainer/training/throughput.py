"""Speed and memory of a run."""

import resource

import torch


class SampleRate:
    """Training samples per second since it was last taken."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """Counts a step that took that long."""
        self.samples += self.batch_size
        self.seconds += seconds

    def take(self) -> float:
        """The rate since the last call, or since the start."""
        rate = self.samples / max(self.seconds, 1e-9)
        self.samples, self.seconds = 0, 0.0
        return rate


def memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: the device's allocations; on a CPU the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
