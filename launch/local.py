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
from types import FrameType

from submitit.core.utils import JobPaths

from launch.ending import conclude
from launch.sweep import Run, Sweep
from launch.task import write_job
from trainer.errors import UserError
from trainer.status import CRASHED, FINISHED, PREEMPTED, read_status
from trainer.stop import StopFlag

STRAGGLERS_SECONDS = 60
"""After the first process of a run has ended, the others have that long."""


class Start:
    """The processes of one start of a run."""

    def __init__(self, sweep: Sweep, run: Run, restarts: int) -> None:
        self.run = run
        self.directory = sweep.directory(run)
        self.restarts = restarts
        self.first_end: float | None = None
        tasks = sweep.options.tasks
        self.logs = [JobPaths(sweep.jobs, run.jobs[-1], rank).stdout for rank in range(tasks)]
        port = free_port() if tasks > 1 else 0
        write_job(self.directory, run.jobs[-1], restarts)
        self.processes = [self._spawn(sweep, rank, tasks, port) for rank in range(tasks)]

    def _spawn(self, sweep: Sweep, rank: int, tasks: int, port: int) -> subprocess.Popen[bytes]:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": tasks,
            "LOCAL_WORLD_SIZE": tasks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in place.items()} if tasks > 1 else {}
        command = [sys.executable, "-u", "-m", "launch.task", str(self.directory), str(sweep.cwd)]
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

    def conclude(self, limit: int) -> bool:
        """Whether to start it again."""
        codes = [process.returncode if process.returncode >= 0 else None for process in self.processes]
        return conclude(self.directory, codes, self.logs, self.restarts, limit)


class Pool:
    """Starts runs as there is room, until all have ended or a signal comes, which stops them with checkpoints."""

    def __init__(self, sweep: Sweep, runs: Sequence[Run]) -> None:
        self.sweep = sweep
        self.waiting = deque((run, 0) for run in runs)
        self.started: list[Start] = []
        self.stopping = False

    def execute(self) -> None:
        for number in StopFlag.SIGNALS:
            signal.signal(number, self._stop)
        while self.started or (self.waiting and not self.stopping):
            while self.waiting and not self.stopping and len(self.started) < self.room:
                start = Start(self.sweep, *self.waiting.popleft())
                self.started.append(start)
                if self.stopping:  # the signal came while it was being started
                    start.signal(signal.SIGTERM)
                print(f"start {start.run.name}, log {start.logs[0]}", flush=True)
            for start in [start for start in self.started if start.ended()]:
                self._end(start)
            time.sleep(0.1)

    @property
    def room(self) -> int:
        return self.sweep.options.array_parallelism or 1

    def _end(self, start: Start) -> None:
        self.started.remove(start)
        limit = 0 if self.stopping else self.sweep.options.max_requeues
        if start.conclude(limit):
            self.waiting.append((start.run, start.restarts + 1))
        status = read_status(start.directory)
        reason = f": {status['error']}" if status.get("error") else ""
        print(f"{status.get('state', 'lost')} {start.run.name}{reason}", flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.stopping:
            print("stopping: each run saves a checkpoint first", flush=True)
        self.stopping = True
        for start in self.started:
            start.signal(signal.SIGTERM)


def execute(sweep: Sweep, runs: Sequence[Run]) -> int:
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
