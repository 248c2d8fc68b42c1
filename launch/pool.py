"""Runs of a sweep side by side on this machine, as many at a time as there are shares of it."""

import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence

from launch.records import set_status
from launch.start import Share, Start
from launch.sweep_dir import Sweep, SweepRun
from trainer.formatting import printable
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, read_status
from trainer.signals import StopSignal
from trainer.streams import print_if_read

POLL_SECONDS = 0.1
"""Time between two looks at the processes."""


class Pool:
    """Starts runs as shares get free, until all have ended or a signal stops them, with checkpoints.

    Args:
        sweep: the sweep of the runs.
        runs: each with the number of its earlier starts in its newest job.
        shares: of the machine, for as many runs at a time.
    """

    def __init__(self, sweep: Sweep, runs: Iterable[tuple[SweepRun, int]], shares: Sequence[Share]) -> None:
        self._is_stopping = False
        self._sweep = sweep
        self._queue = deque(runs)
        self._runs = [run for run, _ in self._queue]
        self._starts: list[Start] = []
        self._free = list(shares)

    def execute(self) -> int:
        """Executes the runs to their end; a second Ctrl-C kills them.

        Returns:
            `FINISHED` if all have finished, `PREEMPTED` if a signal stopped them, otherwise `CRASHED`.
        """
        with StopSignal() as stop:
            try:
                while self._starts or (self._queue and not self._is_stopping):
                    self._start()
                    for start in [start for start in self._starts if start.has_ended()]:
                        self._end(start)
                    if stop.received and not self._is_stopping:
                        self._stop()
                    time.sleep(POLL_SECONDS)
            finally:
                for start in self._starts:
                    start.send_signal(signal.SIGKILL)
        if self._is_stopping:
            return PREEMPTED
        states = {read_status(self._sweep.directory(run)).get("state") for run in self._runs}
        return FINISHED if states <= {"finished"} else CRASHED

    def _start(self) -> None:
        while not self._is_stopping and self._free and (found := self._next()):
            self._queue.remove(found)
            run, restarts = found
            try:
                start = Start(self._sweep, run, restarts, self._free[0])
            except OSError as error:  # of its files: the other runs go on
                reason = f"cannot be started: {error.strerror}"
                set_status(self._sweep.directory(run), "failed", reason)
                print_if_read(f"failed {run.name}: {reason}")
                continue
            self._free.pop(0)
            self._starts.append(start)
            print_if_read(f"start {run.name}, log {start.logs[0]}")

    def _next(self) -> tuple[SweepRun, int] | None:
        """The first run in the queue of the earliest stage, unless a run of an earlier one is still executed."""
        found = min(self._queue, key=lambda queued: queued[0].stage, default=None)
        earlier = found is not None and any(start.run.stage < found[0].stage for start in self._starts)
        return None if earlier else found

    def _end(self, start: Start) -> None:
        self._starts.remove(start)
        self._free.append(start.share)
        limit = 0 if self._is_stopping else self._sweep.options.max_requeues
        if start.record_exit(limit):
            self._queue.append((start.run, start.restarts + 1))
        status = read_status(start.directory)
        reason = f": {status['error']}" if status.get("error") else ""
        print_if_read(printable(f"{status.get('state', 'vanished')} {start.run.name}{reason}"))

    def _stop(self) -> None:
        print_if_read("stopping: each run saves a checkpoint first")
        self._is_stopping = True
        for start in self._starts:
            start.send_signal(signal.SIGTERM)
