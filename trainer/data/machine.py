"""What of the machine a rank may take: cores and memory."""

import os
from pathlib import Path

import torch

from trainer.distributed.ranks import rank_info_from

MOST_WORKERS = 8
"""Data workers that ``auto`` starts: each takes memory, and more of them seldom help."""


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_here() -> int:
    """The ranks of this run on this machine."""
    info = rank_info_from(dict(os.environ))
    return -(-info.world_size // info.nodes) if info else 1


def cores_per_rank() -> int:
    """The cores that a rank may take, at least one: its share of the machine's, or what Slurm gives a task."""
    cores = available_cores()
    of_task = os.environ.get("SLURM_CPUS_PER_TASK")
    if of_task and "RANK" not in os.environ:
        return min(cores, int(of_task))
    return max(1, cores // ranks_here())


def auto_workers() -> int:
    """The data workers of a rank where the user leaves their number open."""
    return min(cores_per_rank(), MOST_WORKERS)


def free_memory(device: torch.device) -> int | None:
    """Bytes of a device that are free for this rank; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 // ranks_here()
