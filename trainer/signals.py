"""Stopping on a signal: a handler only sets a flag, which the loop reads between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopSignal:
    """Set by SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2 while its context is open; a second SIGINT stops at once.

    SIGHUP comes when the terminal is closed. Where it is ignored, as under nohup, it stays so.

    A launcher may start the process with these signals blocked, so that none is lost before: they come now.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

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
    """Processes that are started within do not see the signals of a StopSignal before they have one of their own.

    We get those of that time after it. A signal sent to the whole job must not end data workers before the last step
    has its batch, nor any process that has only begun to start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Preempted(Exception):
    """A signal ended the run after a checkpoint was written."""

    def __init__(self, received: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {received.name} at step {step}")
        self.step = step
