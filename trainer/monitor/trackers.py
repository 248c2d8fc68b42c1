"""Experiment trackers as sinks: a run's scalars, while it trains. What a tracker lacks, ``report push`` adds later."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from trainer.monitor.base import SINKS, Progress, RunInfo, Sink, Status
from trainer.options import flatten
from trainer.trackers.base import TRACKERS, TrackedRun, Tracker, need_tracker, open_tracker, tracked


class TrackerSink(Sink):
    """Reports metrics, speeds and the numbers of callbacks to a tracker.

    The tracker is opened at the first report, so that one that cannot be reached is a warning. After its first
    failure it is left alone: each further attempt might hold up the training.
    """

    def __init__(self, run: RunInfo, name: str) -> None:
        self._name = name
        self._run = TrackedRun(run.directory, run.name, flatten(run.config))
        self._anew = not run.resumed_step
        self._id: str | None = None
        self._tracker: Tracker | None = None
        self._failed = False

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Adds the metrics and the clock's numbers."""
        self._log(progress, tracked(metrics, {"seconds": progress.seconds, **clock}))

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Adds the metrics and the clock's numbers."""
        self._log(progress, tracked(metrics, {"seconds": progress.seconds, **clock}))

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Adds them."""
        self._log(progress, values)

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Stores everything, and how the run ended."""
        if self._tracker:
            self._tracker.close(status)

    def state_dict(self) -> dict[str, Any]:
        """The tracker's own name of the run; what was reported until now is stored, or the tracker has failed."""
        with self._given_up_at_an_error():
            if self._tracker:
                self._tracker.flush()
        return {"id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on in the same run of the tracker."""
        self._id = state["id"]

    def _log(self, progress: Progress, values: Mapping[str, float]) -> None:
        if self._failed:
            return
        with self._given_up_at_an_error():
            if self._tracker is None:
                self._tracker = open_tracker(self._name, self._run, id=self._id, anew=self._anew)
                self._id = self._tracker.id
            self._tracker.log(progress.step, progress.seconds, values)

    @contextmanager
    def _given_up_at_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._failed, self._tracker = True, None
            raise


def _register(name: str) -> None:
    @SINKS.register(name, check=partial(need_tracker, name, f"monitor.sinks: {name}"))
    def sink(run: RunInfo) -> Sink:
        return TrackerSink(run, name)


for _name in TRACKERS:
    _register(_name)
