"""Intervals and verdicts as a person reads them."""

import math
import time

from trainer.formatting import counted, duration
from trainer.metrics import Metric
from trainer.report.read_runs import RecordedRun
from trainer.report.statistics import MOST_SEEDS, Difference, Interval
from trainer.report.summary import MIN_SEEDS, PairwiseComparison, Report, Spread

NONE = "–"


def interval(metric: Metric, value: Interval | None, spread: Spread = "interval") -> str:
    """``97.22% ± 0.31%``; "diverged" for a mean that is not finite; `NONE` where nothing is known."""
    if value is None:
        return NONE
    if not math.isfinite(value.mean):
        return "diverged"
    mean = metric.text(value.mean)
    beside = value.half if spread == "interval" else value.deviation
    return mean if beside is None else f"{mean} ± {metric.text(beside)}"


def difference(metric: Metric, value: Interval) -> str:
    """A difference of means with its sign: ``+0.50 pp ± 0.20 pp``, in percentage points if values are percentages."""
    return f"{'+' * (value.mean >= 0)}{interval(metric, value)}".replace("%", " pp")


def p_value(p: float) -> str:
    """``p < 0.0001``, ``p = 0.012``, ``p = 0.45``."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def basis(found: Difference) -> str:
    """The test and its sample sizes: ``paired t, n = 5``."""
    first, second = found.n
    return f"paired t, n = {first}" if found.kind == "paired" else f"Welch's t, n = {first} and {second}"


def verdict(comparison: PairwiseComparison, metric: Metric) -> str:
    """A comparison in one sentence, which claims a difference only where one is shown."""
    first, other, found = comparison.first, comparison.other, comparison.difference
    if found is None or comparison.interval is None:
        return f"{other} cannot be compared with {first}: no finished run, or one without a finite {metric.name}."
    if not comparison.enough:
        return f"Too few runs to compare {first} and {other}: {min(found.n)}, where {MIN_SEEDS} of each are needed."
    gap = f"{difference(metric, comparison.interval)} {metric.name}"
    if comparison.p is None:
        return f"No claim about {first} and {other}: {gap}, but no variance to test it by ({basis(found)})."
    shown = f"{gap} ({p_value(comparison.p)}, {basis(found)})"
    if comparison.claimed:
        better, worse = (first, other) if metric.better(found.mean, 0) else (other, first)
        return f"{better} is better than {worse}: {shown}."
    return f"No difference between {first} and {other} is shown: {shown}.{outlook(comparison)}"


def outlook(comparison: PairwiseComparison) -> str:
    """A sentence on how many more seeds would show a difference; empty if there is none at all."""
    if not comparison.difference or not comparison.difference.mean:
        return ""
    if comparison.more_seeds is None:
        return f" One of this size and spread would take more than {MOST_SEEDS} seeds of each."
    count = counted(comparison.more_seeds, "more seed")
    return f" If it is real and of this size, about {count} of each would show it."


def method(report: Report) -> str:
    """A sentence or two on how means and comparisons were computed."""
    beside = {
        "interval": "half of the 95 % interval (Student's t)",
        "std": "the standard deviation",
    }[report.spread]
    means = f"Mean ± {beside} over finished runs."
    if not report.tests:
        return means
    pairs = f"{counted(report.tests, 'pair')} of groups"
    return (
        f"{means} A difference is claimed at p < {report.level:g} after Holm's correction for {pairs}: "
        f"where its interval, of {100 * (1 - report.level):g} % with the same correction, leaves out zero."
    )


def remark(run: RecordedRun) -> str:
    """What happened to a run that has not finished; empty if there is nothing to add to its state."""
    if run.state == "failed":
        return run.error or "no error message"
    if run.state in ("unknown", "pruned") and run.error:
        return run.error
    if run.state == "running" and run.updated is not None and run.process is not None:
        return f"last update {duration(max(0.0, time.time() - run.updated))} ago, on {run.process[0]}"
    return {
        "preempted": "stopped with a checkpoint: the same command continues it",
        "vanished": "its status is running, but its process is gone",
        "queued": "has not started",
        "unknown": "has no readable status.json",
        "unreadable": "its config.yaml cannot be read, so it is in no group",
    }.get(run.state, "")
