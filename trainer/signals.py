"""Stopping on a signal: a handler only sets a flag, which the loop reads between two steps.

From a signal to the run's next start on a cluster, in the order in which it happens:

1. ``launch/worker.py`` blocks the signals in a job's tasks until the trainer is imported; under Slurm one comes
   ``launch.signal_seconds`` before the time limit, at a preemption, or by ``python -m launch cancel``.
2. `StopSignal`, opened by ``trainer/training/run.py``, unblocks them and notes the first.
3. ``trainer/training/step_sync.py``: at the end of a step its all-reduce lets all ranks know of the signal of one.
4. ``trainer/training/loop.py`` saves a checkpoint and raises `Preempted`.
5. ``trainer/training/run.py`` writes ``preempted`` into status.json and returns 75, which is the exit code.
6. ``launch/on_exit.py``, the last command of the script that ``launch/slurm_executor.py`` writes, sees the 75 and puts
   the job back into the queue, up to ``launch.max_requeues`` times. Without Slurm ``launch/pool.py`` starts it again.
7. The job starts again on the same run directory, and ``trainer/checkpoint/restore.py`` loads the newest checkpoint.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopSignal:
    """Notes SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 while its context is open; a second SIGINT stops at once.

    SIGHUP comes when the terminal is closed. Where it is ignored, as under nohup, it stays so.
    A launcher may start the process with these signals blocked: they are delivered on entry.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The last signal that was received."""

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in self.SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks the signals of a StopSignal in processes that are started within, until they open one of their own.

    Signals sent to this process meanwhile are delivered on exit. A signal that is sent to all processes of a job must
    not end data workers before the last step has its batch, nor a process that is still starting.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
    try:
        with _signals_kept():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Sends this process on exit the signals of a StopSignal that one of its other threads, such as BLAS's, received.

    They do not block them, and Python would run the handler in the main thread at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    kept = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for missed in received:
            signal.raise_signal(missed)


class Preempted(Exception):
    """A signal ended the run after a checkpoint was written."""

    def __init__(self, received: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {received.name} at step {step}")
        self.step = step
