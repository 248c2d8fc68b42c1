"""The results of each group of runs, and the tests of their differences."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, median
from typing import Literal

from trainer.errors import ConfigError, nearest
from trainer.metrics import Metric
from trainer.report.grouping import Group, config_text, group, group_keys
from trainer.report.metric_choice import choose_metric, first_reaching
from trainer.report.published import PublishedResult, published_results
from trainer.report.read_runs import RecordedRun
from trainer.report.records import SPEEDS
from trainer.report.sensitivity import Sensitivity, sensitivities
from trainer.report.statistics import (
    Difference,
    Interval,
    compare,
    holm,
    holm_confidences,
    mean_interval,
    more_seeds,
)

LEVEL = 0.005
"""Corrected p value below which a difference is claimed (Benjamin et al., Redefine statistical significance, 2018).
At the usual 0.05, the chance is two in three that one of 20 reports on equal contenders would claim a difference."""

Spread = Literal["interval", "std"]
"""Half of the 95 % interval of a mean, or the standard deviation of the values."""

MIN_SEEDS = 3
"""Runs of each group that a claim takes."""


@dataclass(frozen=True)
class Reached:
    """When the runs of a group reached the target."""

    reached: int
    """Number of runs."""
    settled: int
    """Number of runs that reached it or ended without: those that may still reach it do not count."""
    steps: float | None
    """Median over the settled runs, where one that never reached it comes last; None: less than half of them did."""
    seconds: float | None
    """Of training, in the same way."""


@dataclass(frozen=True)
class Summary:
    """The numbers of a group: of its counted runs, but ``reached`` and the cost are those of all its runs."""

    group: Group
    finals: dict[Hashable, float]
    """The metric's last value of each counted run."""
    final: Interval | None
    """Mean of the last values; None: no run counts."""
    best: Interval | None
    """Mean of each counted run's best value."""
    reached: Reached | None
    """None: no target was given."""
    steps: float | None
    """Median over the counted runs."""
    seconds: float | None
    """Of training: median over the counted runs."""
    seconds_per_step: float | None
    """Median over the runs."""
    memory_mib: float | None
    """Maximum over the runs."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Medians over the runs of `trainer.report.records.SPEEDS`, of those that are known."""
    step_memory: dict[str, float] = field(default_factory=dict)
    """Maxima over the runs with ``profile=memory``: MiB by what they are for."""


@dataclass(frozen=True)
class PairwiseComparison:
    """The baseline of an experiment, or without one its best group, against another of it."""

    first: str
    other: str
    difference: Difference | None
    """Of the first to the other; None: one of them has no counted run, or one whose last value is not finite."""
    p: float | None
    """Corrected for the number of pairs with a baseline, or without one, where the data decided which group is the
    best, of all pairs of groups."""
    level: float = LEVEL
    """The p value below which a difference is claimed."""
    confidence: float = 1 - LEVEL
    """Of the interval on which the claim rests, corrected like p."""

    @property
    def enough(self) -> bool:
        """Whether both groups have the runs that a claim takes."""
        return self.difference is not None and min(self.difference.n) >= MIN_SEEDS

    @property
    def claimed(self) -> bool:
        """Whether a difference is shown."""
        return self.enough and self.p is not None and self.p < self.level

    @property
    def interval(self) -> Interval | None:
        """Of the difference: it leaves out zero exactly if a difference is claimed."""
        return self.difference.interval(self.confidence) if self.difference else None

    @property
    def more_seeds(self) -> int | None:
        """About how many more seeds of each group would show the difference; None: it is shown, or nobody can tell."""
        if self.difference is None or not self.enough or self.claimed:
            return None
        return more_seeds(self.difference, self.confidence)


@dataclass(frozen=True)
class Report:
    """A set of runs, grouped, summarised and compared."""

    runs: list[RecordedRun]
    keys: list[str]
    """The options by which the runs are grouped."""
    metric: Metric
    target: float | None
    summaries: list[Summary]
    comparisons: list[PairwiseComparison]
    tests: int
    """Pairs of groups that were tested, for which the p values are corrected."""
    sensitivities: list[Sensitivity]
    level: float = LEVEL
    """The corrected p value below which a difference is claimed."""
    spread: Spread = "interval"
    """What stands beside the groups' means."""
    published: list[PublishedResult] = field(default_factory=list)
    """Of the groups that ran a published recipe."""
    protocol: list[str] = field(default_factory=list)
    """Sentences on how the runs were made; empty if that is not known."""


def make_report(
    runs: list[RecordedRun],
    *,
    by: str | None,
    metric: str | None,
    target: float | None,
    level: float = LEVEL,
    spread: Spread = "interval",
    baseline: str | None = None,
) -> Report:
    """Groups, summarises and compares runs.

    Args:
        by: options to group by, separated by commas; None: all that were swept but the seed.
        metric: name of the metric to compare by; None: the one by which the runs pick their best checkpoint.
        target: value of the metric to be reached.
        level: corrected p value below which a difference is claimed.
        spread: what stands beside the groups' means.
        baseline: the group that all others are compared with, by its label or one of its values; None: the best one.

    Raises:
        UserError: an unknown option, metric or baseline, or runs without a metric in common.
    """
    readable = [run for run in runs if run.state != "unreadable"]
    keys = group_keys(by, readable)
    chosen = choose_metric(metric, readable)
    groups = group(readable, keys)
    summaries = [summarise(each, chosen, target) for each in groups]
    comparisons, tests = compare_all(summaries, chosen, level, baseline)
    curves = sensitivities(readable, keys, chosen)
    return Report(
        *(runs, keys, chosen, target, summaries, comparisons, tests, curves, level, spread),
        published=published_results(groups),
    )


def summarise(group: Group, metric: Metric, target: float | None) -> Summary:
    """The numbers of a group."""
    curves = {unit: run.evaluations[metric.name] for unit, run in group.counted.items() if run.evaluations}
    ends = {unit: points[-1] for unit, points in curves.items()}
    finals = {unit: end.value for unit, end in ends.items()}
    bests = [metric.best(point.value for point in points) for points in curves.values()]
    seconds = [point.seconds for point in ends.values() if point.seconds is not None]
    speeds = [run.seconds_per_step for run in group.runs if run.seconds_per_step is not None]
    return Summary(
        group=group,
        finals=finals,
        final=mean_interval(list(finals.values())) if finals else None,
        best=mean_interval(bests) if bests else None,
        reached=None if target is None else reach(group, metric, target),
        steps=median(end.step for end in ends.values()) if ends else None,
        seconds=median(seconds) if seconds else None,
        seconds_per_step=median(speeds) if speeds else None,
        memory_mib=max((run.memory_mib for run in group.runs if run.memory_mib is not None), default=None),
        speeds={
            name: median(values)
            for name in SPEEDS
            if (values := [run.speeds[name] for run in group.runs if name in run.speeds])
        },
        step_memory={
            name: max(run.step_memory.get(name, 0.0) for run in group.runs)
            for name in dict.fromkeys(name for run in group.runs for name in run.step_memory)
        },
    )


def reach(group: Group, metric: Metric, target: float) -> Reached:
    """When the runs of a group reached the target."""
    done = [first_reaching(metric, target, run.evaluations.get(metric.name, [])) for run in group.runs]
    ended = sum(
        run.state in ("finished", "failed") for run, at in zip(group.runs, done, strict=True) if not at
    )
    points = [point for point in done if point]
    never = [math.inf] * ended

    def middle(values: list[float]) -> float | None:
        value = median([*values, *never]) if values else math.inf
        return value if value < math.inf else None

    seconds = [point.seconds for point in points if point.seconds is not None]
    return Reached(len(points), len(points) + ended, middle([float(p.step) for p in points]), middle(seconds))


def experiments(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """The groups that compete with each other: those of the same task, or all where each has a task of its own."""
    tasks: dict[str, list[Summary]] = {}
    for summary in summaries:
        tasks.setdefault(summary.group.task, []).append(summary)
    found = list(tasks.values())
    return found if any(len(members) > 1 for members in found) else [list(summaries)]


def find_baselines(summaries: Sequence[Summary], name: str) -> list[Summary]:
    """The groups of a name, which is a label or else a value, such as ``adamw``: at most one in each experiment.

    Raises:
        ConfigError: there is none, or there are several in one experiment.
    """
    found = [s for s in summaries if s.group.label == name]
    found = found or [s for s in summaries if name in map(config_text, s.group.values.values())]
    if not found:
        raise ConfigError(f"no group is called {name!r}{nearest(name, [s.group.label for s in summaries])}")
    for members in experiments(summaries):
        here = [s.group.label for s in members if s in found]
        if len(here) > 1:
            raise ConfigError(f"{name!r} may be {' or '.join(map(repr, here))}: choose one of them")
    return found


def compare_all(
    summaries: Sequence[Summary], metric: Metric, level: float, baseline: str | None
) -> tuple[list[PairwiseComparison], int]:
    """Comparisons of one group to every other of its experiment, and the number of pairs tested.

    The one is the baseline; without a baseline it is the group with the best mean, and all pairs count as tested. The
    p values are corrected for the pairs of all experiments together.

    Raises:
        ConfigError: see `find_baselines`.
    """
    baselines = find_baselines(summaries, baseline) if baseline is not None else None
    differences: dict[tuple[str, str], Difference] = {}
    pairs: list[tuple[str, str]] = []
    for members in experiments(summaries):
        sound = [s for s in members if s.finals and all(map(math.isfinite, s.finals.values()))]
        couples: Iterable[tuple[Summary, Summary]]
        if baselines is None:
            ranked = sorted(sound, key=lambda s: fmean(s.finals.values()), reverse=metric.higher_is_better)
            first, couples = ranked[:1], combinations(ranked, 2)
        else:
            first = [s for s in members if s in baselines]
            couples = [(a, b) for a in first if a in sound for b in sound if b is not a]
        differences |= {(a.group.label, b.group.label): compare(a.finals, b.finals) for a, b in couples}
        pairs += [(a.group.label, s.group.label) for a in first for s in members if s is not a]
    tested = {
        pair: difference.p
        for pair, difference in differences.items()
        if difference.p is not None and min(difference.n) >= MIN_SEEDS
    }
    ps = list(tested.values())
    corrected = dict(zip(tested, holm(ps), strict=True))
    confidences = dict(zip(tested, holm_confidences(ps, level), strict=True))
    found = [
        PairwiseComparison(
            *pair, differences.get(pair), corrected.get(pair), level, confidences.get(pair, 1 - level)
        )
        for pair in pairs
    ]
    return found, len(tested)
