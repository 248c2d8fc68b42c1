"""The protocol: a reference run sets the training time, contenders are tuned, the best options run with fresh seeds."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.compare.arguments import Command
from trainer.compare.contenders import rotated, variant
from trainer.compare.planning import plan
from trainer.compare.runner import Runner
from trainer.compare.sentences import protocol_sentences
from trainer.compare.tuning import Tuned, best_of, try_grid
from trainer.compare.tuning_options import corners
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.metrics import on_split
from trainer.options import flatten, to_dict
from trainer.report.grouping import group_keys, group_label
from trainer.report.metric_choice import choose_metric
from trainer.report.read_runs import RecordedRun
from trainer.report.summary import Report, make_report

if TYPE_CHECKING:
    from trainer.compare.search import SearchRun


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison."""

    seconds: float | None
    """The training seconds of each contender; None: each had its own budget."""
    tuned: Tuned
    """The best options of each contender; empty: nothing was tuned."""
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
        of_labels = {c.label: run for c, run in zip(command.contenders, bare, strict=True)}
        self.baseline = command.baseline and group_label(of_labels[command.baseline], self.keys)
        """The label of its group in the report."""

    def _checked_configs(self) -> list[Config]:
        """A config of each contender, with the kind of budget that it will have."""
        command = self.command
        seconds = None if command.reference is None else 1.0
        for each in command.contenders:
            space = command.search.spaces[each.label] if command.search else {}
            for options in [*command.trials.get(each.label, []), *corners(space)]:
                variant(each.config, options, command.tuning_seed, seconds)
        return [variant(each.config, {}, command.seeds[0], seconds) for each in command.contenders]

    def run(self, runner: Runner) -> Outcome:
        """Makes all runs that have not ended yet, and the report.

        Raises:
            UserError: a run cannot be started, the reference run failed, or there is nothing to compare.
            Interrupted: by a signal.
        """
        command = self.command
        seconds = self.measure(runner, self.folder) if command.reference is not None else None
        tuned = self.tune(seconds, runner) if command.trials_of_each else Tuned()
        untuned = [
            c.label for c in command.contenders if command.trials_of_each and c.label not in tuned.best
        ]
        if len(untuned) == len(command.contenders):
            raise UserError(
                f"all trials of {' and '.join(untuned)} failed: give other values, see {runner.log}"
            )
        order = [
            (each, seed) for i, seed in enumerate(command.seeds) for each in rotated(command.contenders, i)
        ]
        planned = [
            plan(self.folder / "runs" / str(number), each, tuned.best.get(each.label, {}), seed, seconds)
            for number, (each, seed) in enumerate(order)
            if each.label not in untuned and seed in command.own_seeds
        ]
        runs = runner.run(planned, "run")
        metric = choose_metric(None, runs).name
        metric = on_split(metric, "test", instead_of="val") if command.trials_of_each else metric
        baseline = None if command.baseline in untuned else self.baseline  # without a rate it has no runs
        report = make_report(runs, by=",".join(self.keys), metric=metric, target=None, baseline=baseline)
        report = dataclasses.replace(
            report,
            sensitivities=[*report.sensitivities, *tuned.curves],
            protocol=protocol_sentences(command, seconds, tuned, untuned),
        )
        return Outcome(seconds, tuned, untuned, report)

    def measure(self, runner: Runner, folder: Path) -> float:
        """The training seconds that the reference takes for its own budget, to four digits.

        Args:
            runner: trains it, unless it has run.
            folder: in which the run is, or will be.

        Raises:
            UserError: it did not finish.
        """
        command = self.command
        (each,) = [c for c in command.contenders if c.label == command.reference]
        planned = plan(folder / "reference" / "0", each, {}, command.seeds[0], None)
        (run,) = runner.run([planned], "reference", must_finish=True)
        seconds = [p.seconds for points in run.evaluations.values() for p in points if p.seconds is not None]
        if run.state != "finished" or not seconds:
            raise UserError(f"the reference run {run.path} is {run.state}: {run.error or 'it has no clock'}")
        return float(f"{max(seconds):.4g}")

    def tune(self, seconds: float | None, runner: Runner) -> Tuned:
        """Tunes each contender on the validation split, by a grid or what is left of a search.

        Raises:
            UserError: a run cannot be started, or there is nothing to tune by.
            Interrupted: by a signal.
        """
        if self.command.search is None:
            return best_of(self.command, self.keys, try_grid(self.command, self.folder, seconds, runner))
        return best_of(self.command, self.keys, self.search(runner, seconds, to_the_end=True).tried())

    def search(self, runner: Runner, seconds: float | None, to_the_end: bool) -> "SearchRun":
        """Makes trials of the search, as `SearchRun.run` does.

        In a folder that several processes share, one of them measures the budget of all trials.
        """
        from trainer.compare.search import REFERENCE, SearchRun  # it imports Optuna, which is an extra

        assert self.command.search is not None
        shared = self.command.search.folder
        search = SearchRun(self.command, shared or self.folder, runner)
        if shared is not None and self.command.reference is not None:
            with search.locked(REFERENCE):
                seconds = self.measure(runner, shared)
        search.run(seconds, to_the_end)
        return search
