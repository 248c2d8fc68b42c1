"""Numbers and verdicts as a person reads them."""

import math
import time

from trainer import metrics
from trainer.report.read_runs import RecordedRun
from trainer.report.statistics import CONFIDENCE, Difference, Interval
from trainer.report.summary import LEVEL, MIN_SEEDS, PairwiseComparison, Report

NONE = "–"


def number(metric: str, value: float) -> str:
    """A metric's value: an accuracy in percent, others with 4 decimals."""
    if "accuracy" in metric:
        return f"{100 * value:.2f}%"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def interval(metric: str, value: Interval | None) -> str:
    if value is None:
        return NONE
    if not math.isfinite(value.mean):
        return "diverged"
    middle = number(metric, value.mean)
    return middle if value.half is None else f"{middle} ± {number(metric, value.half)}"


def difference(metric: str, value: Interval) -> str:
    """With its sign; that of accuracies in percentage points."""
    return f"{'+' * (value.mean >= 0)}{interval(metric, value)}".replace("%", " pp")


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """``0.8 ms``, ``2.35 s``, then as `trainer.metrics.duration`."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return metrics.duration(seconds)


def basis(found: Difference) -> str:
    """The test and its sample sizes."""
    first, second = found.n
    return f"paired t, n = {first}" if found.kind == "paired" else f"Welch's t, n = {first} and {second}"


def verdict(comparison: PairwiseComparison, metric: str) -> str:
    """A comparison in a sentence that claims no more than it shows."""
    best, other, found = comparison.best, comparison.other, comparison.difference
    if found is None:
        return f"{other} cannot be compared: it has no finished run, or one that ended without a finite {metric}."
    if not comparison.enough:
        return f"Too few runs for a claim about {best} and {other}: {min(found.n)}, and it takes {MIN_SEEDS} of each."
    gap = f"{difference(metric, found.interval)} {metric}"
    if comparison.p is None:
        return (
            f"No claim about {best} and {other}: {gap}, without any spread to judge it by ({basis(found)})."
        )
    shown = f"{gap} ({p_value(comparison.p)}, {basis(found)})"
    if comparison.claimed:
        return f"{best} is better than {other}: {shown}."
    hint = " More seeds may show one." if comparison.p < 1 - CONFIDENCE else ""
    return f"No difference between {best} and {other} is shown: {shown}.{hint}"


def method(report: Report) -> str:
    """How the comparisons were made."""
    means = "Mean ± half of the 95 % interval (Student's t) over finished runs."
    if not report.tests:
        return means
    pairs = f"{report.tests} pair{'s' * (report.tests != 1)} of groups"
    return f"{means} A difference is claimed at p < {LEVEL} after Holm's correction for {pairs}."


def remark(run: RecordedRun) -> str:
    """What became of a run that has not finished."""
    if run.state == "failed":
        return run.error or "without a message"
    if run.state == "running" and run.heard is not None and run.process is not None:
        return f"last heard of {duration(max(0.0, time.time() - run.heard))} ago, on {run.process[0]}"
    return {
        "preempted": "was stopped and can go on",
        "lost": "says that it runs, but its process is gone",
        "queued": "has not started",
        "unknown": run.error or "has no readable status.json",
        "unreadable": "its config.yaml cannot be read: it is in no group",
    }.get(run.state, "")
