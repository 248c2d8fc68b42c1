"""The evaluations of a trial's run: what a search is told of them, and when they end the run early."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.compare.study import Trial
from trainer.errors import DataError
from trainer.formatting import counted
from trainer.metrics import METRICS, Metric, metric_of, read_declarations
from trainer.report.metric_choice import declared_by
from trainer.report.read_runs import RecordedRun
from trainer.report.records import parse_record
from trainer.rundir.files import METRICS as FILE
from trainer.rundir.status import read_status


def told_value(metric: Metric, value: float) -> float:
    """A metric's value as a search is told it: lower is better."""
    return -value if metric.higher_is_better else value


def final_value(run: RecordedRun) -> float:
    """The last value of the metric that picks a finished run's best checkpoint, lower is better.

    Raises:
        DataError: the run has no evaluation of it.
    """
    name = str(run.primary)
    if not run.evaluations.get(name):
        raise DataError(f"{run.path} has no evaluation of {name} in {FILE}: there is nothing to search by")
    return told_value(declared_by([run], name), run.evaluations[name][-1].value)


class Evaluations:
    """The evaluations of a run that may be training, read as they are appended.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / FILE
        self._position = self._step = 0
        self._values: list[float] = []

    def read(self, status: Mapping[str, Any]) -> list[float]:
        """All until now of the metric that picks the best checkpoint, lower is better.

        Args:
            status: of the run, which says what metric that is.
        """
        if not status.get("metrics"):  # the first evaluation is not over, or its metric not declared yet
            return self._values
        metric = metric_of(str(status.get("primary")), METRICS | read_declarations(status.get("declared")))
        for line in self._new_lines():
            try:
                record = parse_record(line, (metric.name,))
            except (ValueError, TypeError, KeyError):
                continue
            if (
                record.kind == "evaluation" and record.step > self._step
            ):  # else the run is back at a checkpoint
                self._step = record.step
                self._values.append(told_value(metric, record.values.get(metric.name, math.nan)))
        return self._values

    def _new_lines(self) -> list[bytes]:
        try:
            with self._file.open("rb") as file:
                if file.seek(0, 2) < self._position:  # the run went on from a checkpoint
                    self._position = 0
                file.seek(self._position)
                lines = [line for line in file if line.endswith(b"\n")]
        except OSError:
            return []
        self._position += sum(map(len, lines))
        return lines


class Verdict:
    """Says, while a trial's run trains and once it has ended, whether it is pruned.

    What the pruner decides depends on the evaluations alone, not on when they are looked at: a run that has trained on
    in the meantime, even to its end, is pruned, and one that was to be pruned after its last evaluation is not.

    Args:
        trial: to which evaluations are reported.
        run: the run directory.
        pruner: its name.
    """

    def __init__(self, trial: Trial, run: Path, pruner: str) -> None:
        self._trial, self._run, self._pruner = trial, run, pruner
        self._evaluations = Evaluations(run)

    def __call__(self) -> str | None:
        """Why the run is pruned; None: it is not."""
        status = read_status(self._run)
        values = self._evaluations.read(status)
        self._trial.report(values)
        decided = self._trial.decided
        at_end = status.get("state") == "finished" and decided == len(values)
        if decided is None or at_end or status.get("state") == "failed":
            return None
        return f"by {self._pruner}, after {counted(decided, 'evaluation')}"
