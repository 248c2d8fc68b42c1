"""Sinks with which tests disturb a run: ``plugins=[tests.slurm.plugins]``."""

import os
import signal
import time
from pathlib import Path

from trainer.monitor import SINKS, Progress, RunInfo, Sink
from trainer.signals import StopSignal

GATES = (5, 15)
"""Steps at which a `Gate` holds a run."""


def reached(run: Path, step: int) -> Path:
    """The file that a gate makes in the run directory when the run has come to a step."""
    return run / f"gate_{step}_reached"


def opened(run: Path, step: int) -> Path:
    """The file that a test makes to open a gate."""
    return run / f"gate_{step}_opened"


@SINKS.register("gate")
class Gate(Sink):
    """Holds a run at certain steps until it gets a signal or the gate is opened, so that no test depends on timing."""

    def __init__(self, run: RunInfo) -> None:
        self.directory = run.directory

    def tick(self, progress: Progress) -> None:
        if progress.step in GATES:
            reached(self.directory, progress.step).touch()
            while not opened(self.directory, progress.step).exists() and not stop_received():
                time.sleep(0.02)


def stop_received() -> bool:
    """Whether a signal has come that ends the run after the next step."""
    stop = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return isinstance(stop, StopSignal) and stop.received is not None


@SINKS.register("slow")
class Slow(Sink):
    """Adds a tenth of a second to every step, so that there is time to disturb the run at any of them."""

    def tick(self, progress: Progress) -> None:
        time.sleep(0.1)


@SINKS.register("preempted")
class Preempted(Sink):
    """As if the run were preempted after its first step, at every start."""

    def tick(self, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
