"""status.json during a run: its step and its last metrics."""

import time
from collections.abc import Mapping
from pathlib import Path

from trainer.monitor.base import Progress, Sink
from trainer.rundir.status import write_status


class StatusSink(Sink):
    """Keeps step and last metrics in status.json up to date during a run.

    Args:
        directory: of the run.
        metrics: of the last evaluation before; empty for a new run.
        primary: the metric that picks the best checkpoint.
    """

    SECONDS = 1.0
    """Least time between two writes, but for evaluations."""

    def __init__(self, directory: Path, metrics: Mapping[str, float], primary: str) -> None:
        self.directory = directory
        self.primary = primary
        self.metrics = dict(metrics)
        self._written = time.monotonic()

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Writes the step, at most once in `SECONDS`."""
        if time.monotonic() - self._written >= self.SECONDS:
            self._write(progress.step)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Writes step and metrics."""
        self.metrics = dict(metrics)
        self._write(progress.step)

    def _write(self, step: int) -> None:
        write_status(self.directory, "running", step=step, metrics=self.metrics, primary=self.primary)
        self._written = time.monotonic()
