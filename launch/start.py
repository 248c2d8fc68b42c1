"""One start of a run on this machine: its processes, and their share of the machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from launch.records import record_exit, write_job
from launch.sweep_dir import Sweep, SweepRun
from launch.worker import STRAGGLER_SECONDS
from trainer.signals import signals_blocked


@dataclass(frozen=True)
class Share:
    """What a run has of a machine; what is left out is that of the process that starts it."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables that say so to its processes."""
    cores: frozenset[int] = frozenset()
    """The cores that they run on."""


def core_shares(cores: Sequence[int], runs: int, threads: int | None = None) -> list[Share]:
    """Equal shares of cores for runs side by side; runs have a core together where there are fewer cores than runs.

    Args:
        cores: the numbers of the cores.
        runs: how many runs share them.
        threads: of one run; None: one for each of its cores.
    """
    each = max(1, len(cores) // runs)
    chosen = [frozenset(cores[(run * each + i) % len(cores)] for i in range(each)) for run in range(runs)]
    count = str(threads or each)
    # the second is what the trainer counts data workers by in a Slurm job, and there says what the whole job has
    return [Share({"OMP_NUM_THREADS": count, "SLURM_CPUS_PER_TASK": count}, own) for own in chosen]


class Start:
    """One start of a run: its processes, and the share of the machine that they use.

    Args:
        sweep: the sweep of the run.
        run: the run, with the id of this job among its jobs.
        restarts: earlier starts of this job.
        share: of the machine.
    """

    def __init__(self, sweep: Sweep, run: SweepRun, restarts: int, share: Share) -> None:
        self.run = run
        self.share = share
        self.directory = sweep.directory(run)
        self.restarts = restarts
        self._first_end: float | None = None
        tasks = sweep.options.tasks
        self.logs = sweep.logs(run)
        port = free_port() if tasks > 1 else 0
        write_job(self.directory, run.jobs[-1], restarts)
        with signals_blocked(), on_cores(share.cores):
            self._processes = [self._spawn(sweep, rank, tasks, port) for rank in range(tasks)]

    def _spawn(self, sweep: Sweep, rank: int, tasks: int, port: int) -> subprocess.Popen[bytes]:
        environment = dict(self.share.environment)
        if tasks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"WORLD_SIZE": str(tasks), "LOCAL_WORLD_SIZE": str(tasks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-u", "-m", "launch.worker", str(sweep.cwd), *sweep.command(self.run)]
        with self.logs[rank].open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=sweep.code,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,  # it ends when this process does, however that ends
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
            )

    def has_ended(self) -> bool:
        """Whether all processes have ended; kills those that take too long after the first."""
        codes = [process.poll() for process in self._processes]
        if self._first_end is None and any(code is not None for code in codes):
            self._first_end = time.monotonic()
        if self._first_end is not None and time.monotonic() - self._first_end > STRAGGLER_SECONDS:
            self.send_signal(signal.SIGKILL)
        return None not in codes

    def send_signal(self, number: int) -> None:
        """Sends a signal to all processes that still run."""
        for process in self._processes:
            process.send_signal(number)

    def record_exit(self, limit: int) -> bool:
        """Writes into status.json how the start ended.

        Args:
            limit: how many restarts the run may have.

        Returns:
            Whether to start it again.
        """
        codes = [process.returncode for process in self._processes]
        code = max(128 - code if code < 0 else code for code in codes)  # as srun reports it
        return record_exit(self.directory, code, self.logs, self.restarts, limit)


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Has the processes that are started within run on these cores; with none of them, on those of this process."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
