"""Runs of a sweep as processes on this machine, a limited number at a time."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from launch.notify import notify
from launch.options import LocalOptions
from launch.pool import Pool
from launch.start import Share, core_shares
from launch.sweep_dir import Sweep, SweepRun, executor_of
from trainer.errors import UserError
from trainer.rundir.status import PREEMPTED, process_is_alive, start_time


def execute(sweep: Sweep, runs: Sequence[SweepRun]) -> int:
    """Executes runs to their end; returns the exit code of `Pool.execute`."""
    started = start_time(os.getpid())
    process = f"{os.getpid()}" if started is None else f"{os.getpid()}-{started}"
    for run in runs:
        run.jobs.append(f"{socket.gethostname()}.{process}.{run.name.partition('_')[0]}")
    sweep.write()
    assert isinstance(sweep.options, LocalOptions)
    code = Pool(sweep, [(run, 0) for run in runs], machine_shares(sweep.options)).execute()
    if code != PREEMPTED:
        notify(sweep)
    return code


def cancel(jobs: Sequence[str]) -> None:
    """Stops the processes that execute these jobs; their runs save a checkpoint first.

    Raises:
        UserError: one of them is on another machine.
    """
    for host, pid, started in {executor_of(job) for job in jobs}:
        if host != socket.gethostname():
            raise UserError(f"the runs are executed on {host}: cancel them there")
        if process_is_alive(host, pid, started):  # another process may have its number by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return [str(number) for number in range(sum(line.startswith("GPU") for line in output.splitlines()))]


def machine_shares(options: LocalOptions) -> list[Share]:
    """The shares of this machine for as many runs as there may be at a time; those next to each other share GPUs."""
    packed, places = options.runs_per_job, options.array_parallelism
    gpus = split_gpus(visible_gpus(), options.gpus_per_node, places)
    named = [{"CUDA_VISIBLE_DEVICES": ",".join(each)} if each else {} for each in gpus for _ in range(packed)]
    if packed == 1:
        return [Share(environment) for environment in named]
    shares = core_shares(sorted(os.sched_getaffinity(0)), places * packed)
    return [
        replace(share, environment=share.environment | gpu) for share, gpu in zip(shares, named, strict=True)
    ]


def split_gpus(gpus: list[str], per_run: int, slots: int) -> list[list[str]]:
    """The GPUs of each slot; all empty, so that every run sees all GPUs, if there are too few."""
    if per_run * slots > len(gpus):
        return [[] for _ in range(slots)]
    return [gpus[slot * per_run : (slot + 1) * per_run] for slot in range(slots)]
