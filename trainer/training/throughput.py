"""Speed and memory of a run."""

import resource

import torch


class Speed:
    """What a run has achieved since it was last asked.

    Args:
        batch_size: samples of a step, over all ranks.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, seconds: float, waited: float) -> None:
        """Counts a step that took that long, some of it waiting for its batch."""
        self.samples += self.batch_size
        self.seconds += seconds
        self.waited += waited

    def take(self, flops: float | None = None, peak: float | None = None) -> dict[str, float]:
        """The numbers since the last call, or since the start: ``samples_per_second`` and ``data_wait``, a share.

        Args:
            flops: floating-point operations of a sample; None: unknown, and so is ``flops_per_second``.
            peak: those that all devices can do in a second; None: unknown, and so is ``mfu``, the share that is used.
        """
        seconds = max(self.seconds, 1e-9)
        found = {"samples_per_second": self.samples / seconds, "data_wait": self.waited / seconds}
        if flops is not None:
            found["flops_per_second"] = flops * found["samples_per_second"]
        if flops is not None and peak is not None:
            found["mfu"] = found["flops_per_second"] / peak
        self.samples, self.seconds, self.waited = 0, 0.0, 0.0
        return found


def memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: the device's allocations; on a CPU the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
