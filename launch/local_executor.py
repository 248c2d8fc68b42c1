"""The runs of a sweep on this machine, some at a time."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from submitit.core.utils import JobPaths

from launch.on_exit import record_exit
from launch.sweep_dir import Sweep, SweepRun
from launch.worker import write_job
from trainer.errors import UserError
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, read_status
from trainer.signals import StopSignal

STRAGGLERS_SECONDS = 60
"""After the first process of a run has ended, the others have that long."""


class Start:
    """The processes of one start of a run, on some of the GPUs."""

    def __init__(self, sweep: Sweep, run: SweepRun, restarts: int, gpus: list[str]) -> None:
        self.run = run
        self.gpus = gpus
        self.directory = sweep.directory(run)
        self.restarts = restarts
        self.first_end: float | None = None
        tasks = sweep.options.tasks
        self.logs = [JobPaths(sweep.jobs, run.jobs[-1], rank).stdout for rank in range(tasks)]
        port = free_port() if tasks > 1 else 0
        write_job(self.directory, run.jobs[-1], restarts)
        self.processes = [self._spawn(sweep, rank, tasks, port) for rank in range(tasks)]

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
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us, who pass it on once
            )

    def ended(self) -> bool:
        codes = [process.poll() for process in self.processes]
        if self.first_end is None and any(code is not None for code in codes):
            self.first_end = time.monotonic()
        if self.first_end is not None and time.monotonic() - self.first_end > STRAGGLERS_SECONDS:
            self.signal(signal.SIGKILL)
        return None not in codes

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def record_exit(self, limit: int) -> bool:
        """Whether to start it again."""
        codes = [process.returncode for process in self.processes]
        code = max(128 - code if code < 0 else code for code in codes)  # as srun says it
        return record_exit(self.directory, code, self.logs, self.restarts, limit)


class Pool:
    """Starts runs as there is room, until all have ended or a signal comes, which stops them with checkpoints."""

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun]) -> None:
        self.sweep = sweep
        self.waiting = deque((run, 0) for run in runs)
        self.started: list[Start] = []
        self.stopping = False
        self.free = share(visible_gpus(), sweep.options.gpus_per_node, self.room)

    def execute(self) -> None:
        with StopSignal() as stop:
            try:
                while self.started or (self.waiting and not self.stopping):
                    self._start()
                    for start in [start for start in self.started if start.ended()]:
                        self._end(start)
                    if stop.received and not self.stopping:
                        self._stop()
                    time.sleep(0.1)
            finally:
                for start in self.started:  # a second Ctrl-C
                    start.signal(signal.SIGKILL)

    def _start(self) -> None:
        while self.waiting and not self.stopping and len(self.started) < self.room:
            start = Start(self.sweep, *self.waiting.popleft(), self.free.pop(0))
            self.started.append(start)
            print(f"start {start.run.name}, log {start.logs[0]}", flush=True)

    @property
    def room(self) -> int:
        return self.sweep.options.array_parallelism or 1

    def _end(self, start: Start) -> None:
        self.started.remove(start)
        self.free.append(start.gpus)
        limit = 0 if self.stopping else self.sweep.options.max_requeues
        if start.record_exit(limit):
            self.waiting.append((start.run, start.restarts + 1))
        status = read_status(start.directory)
        reason = f": {status['error']}" if status.get("error") else ""
        print(f"{status.get('state', 'lost')} {start.run.name}{reason}", flush=True)

    def _stop(self) -> None:
        print("stopping: each run saves a checkpoint first", flush=True)
        self.stopping = True
        for start in self.started:
            start.signal(signal.SIGTERM)


def execute(sweep: Sweep, runs: Sequence[SweepRun]) -> int:
    """Executes runs to their end; returns the exit code."""
    for run in runs:  # an id tells who executes the run: host, process, the run's number
        run.jobs.append(f"{socket.gethostname()}.{os.getpid()}.{run.name.partition('_')[0]}")
    sweep.write()
    pool = Pool(sweep, runs)
    pool.execute()
    if pool.stopping:
        return PREEMPTED
    states = [read_status(sweep.directory(run)).get("state") for run in runs]
    return FINISHED if all(state == "finished" for state in states) else CRASHED


def cancel(jobs: Sequence[str]) -> None:
    """Stops whoever executes these jobs; those that run save a checkpoint first.

    Raises:
        UserError: it is on another machine.
    """
    for host, pid in {executor_of(job) for job in jobs}:
        if host != socket.gethostname():
            raise UserError(f"the runs are executed on {host}: cancel them there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def executor_of(job: str) -> tuple[str, int]:
    """Host and process that execute a local job."""
    host, pid, _ = job.rsplit(".", 2)
    return host, int(pid)


def visible_gpus() -> list[str]:
    """The GPUs of this machine that we may use, as CUDA_VISIBLE_DEVICES names them."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return [
        str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))
    ]


def share(gpus: list[str], each: int, runs: int) -> list[list[str]]:
    """GPUs for each of the runs that go on at a time; where there are too few, all see the same."""
    if each * runs > len(gpus):
        return [[] for _ in range(runs)]
    return [gpus[run * each : (run + 1) * each] for run in range(runs)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
