"""The metric by which runs are compared: which it is, its last and best value, when a run reaches a target."""

from collections import Counter
from collections.abc import Sequence

from trainer.errors import ConfigError, DataError, nearest
from trainer.metrics import higher_is_better
from trainer.report.read_runs import MetricPoint, RecordedRun


def choose_metric(asked: str | None, runs: Sequence[RecordedRun]) -> str:
    """The metric asked for, or else the one by which most of the runs pick their best checkpoint.

    Raises:
        ConfigError: not every evaluated run has the metric asked for.
        DataError: no run is evaluated yet, or those that are share no metric.
    """
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        states = ", ".join(f"{n} {state}" for state, n in Counter(run.state for run in runs).items())
        raise DataError(f"no run has been evaluated yet ({states}): there is nothing to compare")
    shared = set.intersection(*(set(run.evaluations) for run in evaluated))
    if not shared:
        a = evaluated[0]
        b = next((run for run in evaluated if not a.evaluations.keys() & run.evaluations), evaluated[-1])
        raise DataError(
            f"the runs share no metric: {a.path.name} has {', '.join(sorted(a.evaluations))}; "
            f"{b.path.name} has {', '.join(sorted(b.evaluations))}"
        )
    if asked is not None:
        if asked not in shared:
            raise ConfigError(f"the runs do not all have a metric {asked}{nearest(asked, shared)}")
        return asked
    primaries = Counter(run.primary for run in runs if run.primary in shared)
    if primaries:
        return str(primaries.most_common(1)[0][0])
    accuracies = sorted(name for name in shared if name.endswith("/accuracy"))
    return accuracies[0] if accuracies else min(shared)


def best(metric: str, points: Sequence[MetricPoint]) -> float:
    """The best value; nan if none is a number."""
    values = [point.value for point in points if point.value == point.value]
    return (max if higher_is_better(metric) else min)(values, default=float("nan"))


def first_at(metric: str, target: float, points: Sequence[MetricPoint]) -> MetricPoint | None:
    """The first point that is at least as good as the target."""
    sign = 1 if higher_is_better(metric) else -1
    return next((point for point in points if sign * point.value >= sign * target), None)
