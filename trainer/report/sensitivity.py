"""How the metric depends on an option with numeric values, such as the learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trainer.metrics import Metric
from trainer.options import is_number
from trainer.report.grouping import Group, group
from trainer.report.read_runs import RecordedRun

MIN_VALUES = 3
"""Values of an option that make a curve."""


@dataclass(frozen=True)
class Curve:
    """The metric over an option, of runs with the same values of the other swept options but for the seed."""

    label: str
    finals: dict[float, list[float]]
    """By the option's value, ascending: the metric's last value of each run that counts; empty: all failed or were
    pruned."""
    means: dict[float, float]
    """Of the values of the option at which no run has diverged."""
    best: float | None
    """The value of the option with the best mean."""
    pruned: frozenset[float]
    """Values of which a run was pruned."""

    @property
    def at_edge(self) -> bool:
        """Whether the best lies at an end of what was tried."""
        return self.best in (min(self.finals), max(self.finals))


@dataclass(frozen=True)
class Sensitivity:
    """Curves of a metric against an option."""

    metric: Metric
    key: str
    """The option."""
    curves: list[Curve]


def sensitivities(runs: Sequence[RecordedRun], keys: Sequence[str], metric: Metric) -> list[Sensitivity]:
    """One for each of the options by which the runs are grouped that has curves."""
    found = []
    for key in keys:
        others = [other for other in keys if other != key]
        numeric = [run for run in runs if is_number(run.config.get(key)) and math.isfinite(run.config[key])]
        curves = [curve_of(each, key, metric) for each in group(numeric, others)]
        curves = [curve for curve in curves if len(curve.finals) >= MIN_VALUES]
        if curves:
            found.append(Sensitivity(metric, key, curves))
    return found


def curve_of(group: Group, key: str, metric: Metric) -> Curve:
    """The curve of a group's runs over an option."""
    tried = finals(group.runs, key, metric.name)
    means = {value: fmean(found) for value, found in tried.items() if found}
    means = {value: mean for value, mean in means.items() if math.isfinite(mean)}
    best = (max if metric.higher_is_better else min)(means, key=means.__getitem__, default=None)
    pruned = frozenset(run.config[key] for run in group.runs if run.state == "pruned")
    return Curve(group.label, tried, means, best, pruned)


def finals(runs: Sequence[RecordedRun], key: str, metric: str) -> dict[float, list[float]]:
    """The metric's last value in each counted run, by the option's value, ascending.

    A value whose runs all failed or were pruned has an empty list; one at which no run has ended is left out.
    """
    groups = sorted(group(runs, [key]), key=lambda each: each.values[key])
    found = {each.values[key]: ended(each, metric) for each in groups}
    return {value: values for value, values in found.items() if values is not None}


def ended(group: Group, metric: str) -> list[float] | None:
    """The last value in each counted run; empty if all others failed or were pruned, None if none has ended."""
    counted = [run.evaluations[metric][-1].value for run in group.counted.values() if run.evaluations]
    return counted if counted or any(run.state in ("failed", "pruned") for run in group.runs) else None


def as_record(sensitivity: Sensitivity) -> dict[str, Any]:
    """The curves' means, for JSON."""
    return {
        "metric": sensitivity.metric.name,
        "option": sensitivity.key,
        "curves": [
            {
                "group": curve.label,
                "best": curve.best,
                "at_edge": curve.at_edge,
                "points": [
                    {"value": value, "mean": curve.means.get(value), "runs": len(found)}
                    for value, found in curve.finals.items()
                ],
            }
            for curve in sensitivity.curves
        ],
    }
