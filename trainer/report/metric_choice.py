"""The metric by which runs are compared, and when a run reaches a target value of it."""

from collections import Counter
from collections.abc import Sequence

from trainer.errors import ConfigError, DataError, nearest
from trainer.metrics import METRICS, Metric, metric_of
from trainer.report.read_runs import RecordedRun
from trainer.report.records import MetricPoint


def choose_metric(asked: str | None, runs: Sequence[RecordedRun]) -> Metric:
    """The metric asked for, or else the one by which most of the runs pick their best checkpoint.

    Where no run says which that is, it is the first one that is better when higher, or else the first one.

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
        return declared_by(runs, asked)
    primaries = Counter(run.primary for run in runs if run.primary in shared)
    if primaries:
        return declared_by(runs, str(primaries.most_common(1)[0][0]))
    candidates = [declared_by(runs, name) for name in sorted(shared)]
    return next((metric for metric in candidates if metric.higher_is_better), candidates[0])


def declared_by(runs: Sequence[RecordedRun], name: str) -> Metric:
    """The metric of this name as the runs' own code declared it, which may know more than this process."""
    return metric_of(name, METRICS | {key: metric for run in runs for key, metric in run.declared.items()})


def first_reaching(metric: Metric, target: float, points: Sequence[MetricPoint]) -> MetricPoint | None:
    """The first point that is at least as good as the target; None if there is none."""
    return next((point for point in points if metric.reaches(point.value, target)), None)
