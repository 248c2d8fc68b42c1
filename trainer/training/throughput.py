"""Speed and memory of a run."""

import resource
from collections.abc import Mapping

import torch


class Speed:
    """What a run has achieved since it was last asked.

    Args:
        batch_size: samples of a step, over all ranks.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples, self.seconds = 0, 0.0
        self.shares: dict[str, float] = {}

    def add(self, seconds: float, waited: float, parts: Mapping[str, float] | None = None) -> None:
        """Counts a step.

        Args:
            seconds: that it took.
            waited: of these, for its batch.
            parts: of these, in each part that was measured.
        """
        self.samples += self.batch_size
        self.seconds += seconds
        for name, spent in {"data_wait": waited, **(parts or {})}.items():
            self.shares[name] = self.shares.get(name, 0.0) + spent

    def take(self, flops: float | None = None, peak: float | None = None) -> dict[str, float]:
        """The numbers since the last call, or since the start: ``samples_per_second``, and shares of the time.

        The shares are ``data_wait`` and the parts that were measured.

        Args:
            flops: floating-point operations of a sample; None: unknown, and so is ``flops_per_second``.
            peak: those that all devices can do in a second; None: unknown, and so is ``mfu``, the share that is used.
        """
        seconds = max(self.seconds, 1e-9)
        shares = {name: spent / seconds for name, spent in self.shares.items()}
        found = {"samples_per_second": self.samples / seconds, **shares}
        if flops is not None:
            found["flops_per_second"] = flops * found["samples_per_second"]
        if flops is not None and peak is not None:
            found["mfu"] = found["flops_per_second"] / peak
        self.samples, self.seconds, self.shares = 0, 0.0, {}
        return found


class GpuReadings:
    """What NVML says of a GPU, for all processes on it: by torch, if the package ``nvidia-ml-py`` is installed.

    ``gpu_utilization`` is the share of the last moment in which some kernel ran, ``gpu_watts`` the power that it draws,
    ``gpu_memory_mib`` the memory that is taken. What cannot be read once is left out for the rest of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._readings = {
            "gpu_utilization": (torch.cuda.utilization, 1e-2),
            "gpu_watts": (torch.cuda.power_draw, 1e-3),
            "gpu_memory_mib": (torch.cuda.device_memory_used, 2**-20),
        }
        if device.type != "cuda":
            self._readings = {}

    def read(self) -> dict[str, float]:
        """The numbers now; empty without a GPU or the package."""
        found = {}
        for name, (reading, unit) in [*self._readings.items()]:
            try:
                found[name] = reading(self.device) * unit
            except (
                Exception
            ):  # no package, or a reading that this GPU, its driver or a container does not give
                del self._readings[name]
        return found


def memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: the device's allocations; on a CPU the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
