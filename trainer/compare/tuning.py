"""Each contender's best options on the validation split: of a grid, or of a search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.compare.arguments import Command
from trainer.compare.contenders import Contender, Options, rotated
from trainer.compare.planning import plan
from trainer.compare.runner import Runner
from trainer.report.metric_choice import choose_metric
from trainer.report.read_runs import RecordedRun
from trainer.report.sensitivity import Sensitivity, sensitivities


@dataclass(frozen=True)
class TriedOptions:
    """Options that a contender has tried, and the run of the trial."""

    label: str
    """Of the contender."""
    options: Options
    run: RecordedRun


@dataclass(frozen=True)
class Cost:
    """What the search of a contender has cost."""

    trials: int
    pruned: int
    failed: int
    seconds: float
    """Of training, in all trials."""
    pruned_share: float
    """Of these seconds, in the trials that were pruned."""


@dataclass(frozen=True)
class Tuned:
    """What the tuning has found."""

    best: dict[str, Options] = field(default_factory=dict)
    """The best options of each contender, by its label; one whose trials have all failed is missing."""
    curves: list[Sensitivity] = field(default_factory=list)
    """How the metric depends on the tuned options."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """Of a search, by the contender's label."""


def try_grid(command: Command, folder: Path, seconds: float | None, runner: Runner) -> list[TriedOptions]:
    """Makes the trials of a grid that have not ended yet, below ``tune`` in the comparison's folder; returns all.

    Raises:
        UserError: a run cannot be started.
        Interrupted: by a signal.
    """
    trials = [
        (each, command.trials[each.label][i])
        for i in range(command.trials_of_each)
        for each in rotated(command.contenders, i)
    ]
    planned = [
        plan(folder / "tune" / str(number), each, options, command.tuning_seed, seconds)
        for number, (each, options) in enumerate(trials)
    ]
    runs = runner.run(planned, "tune")
    return [TriedOptions(each.label, options, run) for (each, options), run in zip(trials, runs, strict=True)]


def best_of(command: Command, keys: Sequence[str], tried: Sequence[TriedOptions]) -> Tuned:
    """Chooses each contender's best trial among those that finished, by its last evaluation.

    Args:
        command: the comparison.
        keys: the options in which the contenders differ.
        tried: all trials.

    Raises:
        DataError: no trial was evaluated, or they share no metric.
    """
    runs = [trial.run for trial in tried]
    metric = choose_metric(None, runs)
    best: dict[str, float] = {}
    tuned: dict[str, Options] = {}
    for trial in tried:
        points = trial.run.evaluations.get(metric.name) if trial.run.state == "finished" else None
        value = points[-1].value if points else math.nan
        if metric.better(value, best.get(trial.label)):
            best[trial.label], tuned[trial.label] = value, trial.options
    curves = sensitivities(runs, [*keys, *command.tuned_options], metric)
    searched = command.contenders if command.search else []
    return Tuned(
        tuned,
        [curve for curve in curves if curve.key in command.tuned_options],
        {each.label: cost_of(each, tried) for each in searched},
    )


def cost_of(each: Contender, tried: Sequence[TriedOptions]) -> Cost:
    """What the search of a contender has cost, of all trials."""
    runs = [trial.run for trial in tried if trial.label == each.label]
    pruned = [run for run in runs if run.state == "pruned"]
    seconds, of_pruned = (math.fsum(run.seconds for run in some) for some in (runs, pruned))
    return Cost(
        trials=len(runs),
        pruned=len(pruned),
        failed=sum(run.state not in ("finished", "pruned") for run in runs),
        seconds=seconds,
        pruned_share=of_pruned / seconds if seconds else 0.0,
    )
