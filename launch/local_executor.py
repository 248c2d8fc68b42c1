"""Runs of a sweep as processes on this machine, a limited number at a time."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from submitit.core.utils import JobPaths

from launch.on_exit import record_exit
from launch.sweep_dir import LOCAL_ID, Sweep, SweepRun
from launch.worker import STRAGGLER_SECONDS, write_job
from trainer.errors import UserError
from trainer.formatting import printable
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, process_is_alive, read_status, start_time
from trainer.signals import StopSignal
from trainer.streams import print_if_read

POLL_SECONDS = 0.1
"""Time between two looks at the processes."""


class Start:
    """One start of a run: its processes, and the GPUs that they use.

    Args:
        sweep: the sweep of the run.
        run: the run, with the id of this job among its jobs.
        restarts: earlier starts of this job.
        gpus: what CUDA_VISIBLE_DEVICES names; empty: whatever this process sees.
    """

    def __init__(self, sweep: Sweep, run: SweepRun, restarts: int, gpus: list[str]) -> None:
        self.run = run
        self.gpus = gpus
        self.directory = sweep.directory(run)
        self.restarts = restarts
        self._first_end: float | None = None
        tasks = sweep.options.tasks
        self.logs = [JobPaths(sweep.jobs, run.jobs[-1], rank).stdout for rank in range(tasks)]
        port = free_port() if tasks > 1 else 0
        write_job(self.directory, run.jobs[-1], restarts)
        self._processes = [self._spawn(sweep, rank, tasks, port) for rank in range(tasks)]

    def _spawn(self, sweep: Sweep, rank: int, tasks: int, port: int) -> subprocess.Popen[bytes]:
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
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


class Pool:
    """Starts runs as slots get free, until all have ended or a signal stops them, with checkpoints."""

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun]) -> None:
        self.is_stopping = False
        self._sweep = sweep
        self._queue = deque((run, 0) for run in runs)
        self._starts: list[Start] = []
        self._slots = sweep.options.array_parallelism or 1
        self._free_gpus = split_gpus(visible_gpus(), sweep.options.gpus_per_node, self._slots)

    def execute(self) -> None:
        """Executes the runs to their end; a second Ctrl-C kills them."""
        with StopSignal() as stop:
            try:
                while self._starts or (self._queue and not self.is_stopping):
                    self._fill_slots()
                    for start in [start for start in self._starts if start.has_ended()]:
                        self._end(start)
                    if stop.received and not self.is_stopping:
                        self._stop()
                    time.sleep(POLL_SECONDS)
            finally:
                for start in self._starts:
                    start.send_signal(signal.SIGKILL)

    def _fill_slots(self) -> None:
        while not self.is_stopping and len(self._starts) < self._slots and (found := self._next()):
            self._queue.remove(found)
            start = Start(self._sweep, *found, self._free_gpus.pop(0))
            self._starts.append(start)
            print_if_read(f"start {start.run.name}, log {start.logs[0]}")

    def _next(self) -> tuple[SweepRun, int] | None:
        """The first run in the queue of the earliest stage, unless a run of an earlier one is still executed."""
        found = min(self._queue, key=lambda queued: queued[0].stage, default=None)
        earlier = found is not None and any(start.run.stage < found[0].stage for start in self._starts)
        return None if earlier else found

    def _end(self, start: Start) -> None:
        self._starts.remove(start)
        self._free_gpus.append(start.gpus)
        limit = 0 if self.is_stopping else self._sweep.options.max_requeues
        if start.record_exit(limit):
            self._queue.append((start.run, start.restarts + 1))
        status = read_status(start.directory)
        reason = f": {status['error']}" if status.get("error") else ""
        print_if_read(printable(f"{status.get('state', 'vanished')} {start.run.name}{reason}"))

    def _stop(self) -> None:
        print_if_read("stopping: each run saves a checkpoint first")
        self.is_stopping = True
        for start in self._starts:
            start.send_signal(signal.SIGTERM)


def execute(sweep: Sweep, runs: Sequence[SweepRun]) -> int:
    """Executes runs to their end.

    Returns:
        `FINISHED` if all have finished, `PREEMPTED` if a signal stopped them, otherwise `CRASHED`.
    """
    started = start_time(os.getpid())
    process = f"{os.getpid()}" if started is None else f"{os.getpid()}-{started}"
    for run in runs:
        run.jobs.append(f"{socket.gethostname()}.{process}.{run.name.partition('_')[0]}")
    sweep.write()
    pool = Pool(sweep, runs)
    pool.execute()
    if pool.is_stopping:
        return PREEMPTED
    states = [read_status(sweep.directory(run)).get("state") for run in runs]
    return FINISHED if all(state == "finished" for state in states) else CRASHED


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


def executor_of(job: str) -> tuple[str, int, int | None]:
    """The process that executes a local job: host, number and start time, as `process_is_alive` takes them."""
    found = re.fullmatch(LOCAL_ID, job)
    assert found is not None, "read_sweep refuses others"
    return found["host"], int(found["pid"]), int(found["started"]) if found["started"] else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return [str(number) for number in range(sum(line.startswith("GPU") for line in output.splitlines()))]


def split_gpus(gpus: list[str], per_run: int, slots: int) -> list[list[str]]:
    """The GPUs of each slot; all empty, so that every run sees all GPUs, if there are too few."""
    if per_run * slots > len(gpus):
        return [[] for _ in range(slots)]
    return [gpus[slot * per_run : (slot + 1) * per_run] for slot in range(slots)]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
