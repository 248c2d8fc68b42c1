"""The protocol: a reference run sets the training time, contenders are tuned, the best options run with fresh seeds."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.compare.arguments import Command, Contender, Options, variant
from trainer.compare.runner import PlannedRun, Runner
from trainer.config.compose import file_name, resolve
from trainer.config.schema import Config
from trainer.errors import ConfigError, UserError
from trainer.metrics import on_split
from trainer.options import flatten, to_dict
from trainer.report.grouping import group_keys
from trainer.report.metric_choice import choose_metric
from trainer.report.read_runs import RecordedRun
from trainer.report.sensitivity import Sensitivity, sensitivities
from trainer.report.summary import Report, make_report
from trainer.rundir.files import CONFIG
from trainer.rundir.frozen_config import freeze

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison."""

    seconds: float | None
    """The training seconds of each contender; None: each had its own budget."""
    tuned: dict[str, Options]
    """The best options of each contender, by its label; one whose trials have all failed is missing."""
    untuned: list[str]
    """The labels of those whose trials have all failed, and which therefore are not compared."""
    report: Report
    """On the runs with fresh seeds; its sensitivities include those of the tuning."""


class ComparisonRun:
    """The runs of a comparison, below ``reference``, ``tune`` and ``runs`` in its folder.

    Args:
        command: the contenders, their seeds, budget and trials.
        folder: of the comparison, an absolute path.

    Raises:
        ConfigError: an option that is tuned, or a budget in seconds, does not fit a contender.
    """

    def __init__(self, command: Command, folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.configs = self._checked_configs()
        """One of each contender, for a trial build."""
        bare = [RecordedRun(folder, flatten(to_dict(config)), "queued") for config in self.configs]
        keys = [key for key in group_keys(None, bare) if key not in command.tuned_options]
        self.keys = keys or ["optimizer.name"]
        """The options in which the contenders differ."""

    def _checked_configs(self) -> list[Config]:
        """A config of each contender, with the kind of budget that it will have."""
        command = self.command
        seconds = None if command.reference is None else 1.0
        for each in command.contenders:
            for options in command.trials.get(each.label, []):
                variant(each.config, options, command.tuning_seed, seconds)
        return [variant(each.config, {}, command.seeds[0], seconds) for each in command.contenders]

    def run(self, runner: Runner) -> Outcome:
        """Makes all runs that have not ended yet, and the report.

        Raises:
            UserError: a run cannot be started, the reference run failed, or there is nothing to compare.
            Interrupted: by a signal.
        """
        command = self.command
        seconds = self.measure(runner) if command.reference is not None else None
        tuned, curves = self.tune(seconds, runner) if command.trials else ({}, [])
        untuned = [each.label for each in command.contenders if command.trials and each.label not in tuned]
        if len(untuned) == len(command.contenders):
            raise UserError(
                f"all trials of {' and '.join(untuned)} failed: give other values, see {runner.log}"
            )
        order = [
            (each, seed) for i, seed in enumerate(command.seeds) for each in rotated(command.contenders, i)
        ]
        planned = [
            self.plan(f"runs/{number}", each, tuned.get(each.label, {}), seed, seconds)
            for number, (each, seed) in enumerate(order)
            if each.label not in untuned
        ]
        runs = runner.run(planned, "run")
        metric = choose_metric(None, runs).name
        metric = on_split(metric, "test", instead_of="val") if command.trials else metric
        report = make_report(runs, by=",".join(self.keys), metric=metric, target=None)
        curves = [*report.sensitivities, *curves]
        report = dataclasses.replace(
            report, sensitivities=curves, protocol=self.protocol_sentences(seconds, curves, untuned)
        )
        return Outcome(seconds, tuned, untuned, report)

    def measure(self, runner: Runner) -> float:
        """The training seconds that the reference takes for its own budget, to four digits.

        Raises:
            UserError: it did not finish.
        """
        command = self.command
        (each,) = [c for c in command.contenders if c.label == command.reference]
        (run,) = runner.run([self.plan("reference/0", each, {}, command.seeds[0], None)], "reference")
        seconds = [p.seconds for points in run.evaluations.values() for p in points if p.seconds is not None]
        if run.state != "finished" or not seconds:
            raise UserError(f"the reference run {run.path} is {run.state}: {run.error or 'it has no clock'}")
        return float(f"{max(seconds):.4g}")

    def tune(self, seconds: float | None, runner: Runner) -> tuple[dict[str, Options], list[Sensitivity]]:
        """Each contender's best options on the validation split, by its label, and how the metric depends on them."""
        command = self.command
        trials = [
            (each.label, command.trials[each.label][i], each)
            for i in range(max(map(len, command.trials.values())))
            for each in rotated(command.contenders, i)
        ]
        seed = command.tuning_seed
        planned = [
            self.plan(f"tune/{number}", each, options, seed, seconds)
            for number, (_, options, each) in enumerate(trials)
        ]
        runs = runner.run(planned, "tune")
        metric = choose_metric(None, runs)
        best: dict[str, float] = {}
        tuned: dict[str, Options] = {}
        for (name, options, _), run in zip(trials, runs, strict=True):
            values = run.evaluations.get(metric.name) if run.state == "finished" else None
            value = values[-1].value if values else math.nan
            if metric.better(value, best.get(name)):
                best[name], tuned[name] = value, options
        curves = sensitivities(runs, [*self.keys, *command.tuned_options], metric)
        return tuned, [curve for curve in curves if curve.key in command.tuned_options]

    def plan(
        self, number: str, each: Contender, options: Options, seed: int, seconds: float | None
    ) -> PlannedRun:
        """A run of a contender, with its config frozen in its directory if it is not there yet.

        Args:
            number: of the run, after its part of the comparison: no two runs have the same directory.
            each: the contender.
            options: of the optimizer, in place of the contender's.
            seed: of the run.
            seconds: its budget; None: that of the contender's config.

        Raises:
            UserError: there is another run in its directory.
        """
        words = [*(f"{key}={value}" for key, value in options.items()), f"seed={seed}"]
        path = self.folder / f"{number}_{file_name(','.join([each.label, *words]))}"
        config = variant(each.config, options, seed, seconds)
        if not (path / CONFIG).exists():
            budget = [] if seconds is None else [f"loop.max_time={seconds}"]
            overrides = [*each.overrides, *(f"optimizer.{word}" for word in words[:-1]), words[-1], *budget]
            path.mkdir(parents=True, exist_ok=True)
            freeze(path, to_dict(config), overrides)
        elif frozen_config(path) != config:
            raise UserError(f"{path} holds another run than that of this comparison: move it away")
        return PlannedRun(path, " ".join([each.label, *words]), seconds)

    def protocol_sentences(
        self, seconds: float | None, curves: Sequence[Sensitivity], untuned: Sequence[str]
    ) -> list[str]:
        """Sentences on how the comparison was made."""
        command = self.command
        if seconds is None:
            sentences = ["Each contender had the budget of its own config."]
        else:
            sentences = [
                f"Each contender trained for {seconds:g} s, as long as {command.reference} took for its budget."
            ]
        if command.trials:
            trials = max(map(len, command.trials.values()))
            metric = curves[0].metric.name if curves else "the validation split"
            sentences.append(
                f"{' and '.join(command.tuned_options)} of each: the best of {trials} trials by {metric}, with "
                f"seed {command.tuning_seed}, on {command.contenders[0].config.loader.holdout:.0%} of the "
                f"training set, held out in all runs."
            )
        sentences += [failed_trials(label) for label in untuned]
        return [*sentences, f"Command: python -m trainer.compare {shlex.join(command.words)}"]


def failed_trials(label: str) -> str:
    """A sentence on a contender that is not compared."""
    return f"{label} is not compared, since all of its trials failed."


def frozen_config(path: Path) -> Config | None:
    """The config in a run's directory; None if it cannot be read as one."""
    try:
        values = yaml.safe_load((path / CONFIG).read_text())
        return resolve(OmegaConf.create(values)) if isinstance(values, dict) else None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigError):
        return None


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, beginning with item ``by`` modulo their number: so a drift of the machine's speed favours none."""
    by %= len(items)
    return [*items[by:], *items[:by]]
