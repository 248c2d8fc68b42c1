"""status.json during a run: its step and its last metrics."""

import time
from collections.abc import Mapping

from trainer.monitor.base import Progress, Sink
from trainer.rundir.status import StatusFile


class StatusSink(Sink):
    """Keeps step and last metrics in status.json up to date during a run."""

    SECONDS = 1.0
    """Least time between two writes, but for evaluations."""

    def __init__(self, status: StatusFile) -> None:
        self.status = status
        self._written = time.monotonic()

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Writes the step, at most once in `SECONDS`."""
        if time.monotonic() - self._written >= self.SECONDS:
            self._write(step=progress.step)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Writes step and metrics."""
        self._write(step=progress.step, metrics=dict(metrics))

    def _write(self, **fields: object) -> None:
        self.status.write("running", **fields)
        self._written = time.monotonic()
