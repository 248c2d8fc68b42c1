"""The memory of a search: a study of Optuna for each contender, in a journal that processes on several machines share.

Optuna minimises: `trainer.compare.evaluations` gives values of which lower is better. A trial whose run failed or ended
without a number is told as infinitely bad, so that the sampler keeps away from there.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from trainer._private import reopened_trial
from trainer.compare.contenders import Options
from trainer.compare.grids import Interval
from trainer.compare.tuning_options import SEARCH_FOLDER, Search, Space
from trainer.errors import UserError, one_line

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

RUNGS = 4
"""ASHA's reduction factor: of the trials with 1, 4, 16, ... evaluations the best quarter goes on."""

DECIDED, SEARCH = "decided", "search"
"""Attributes in the journal: the evaluation after which a trial was to be pruned; what is searched, and how."""


class Trial:
    """A trial that has not been told yet: made now, or before by a process that is gone.

    Args:
        trial: Optuna's.
        space: of its options, which are drawn unless the journal has them.
    """

    def __init__(self, trial: optuna.Trial, space: Space) -> None:
        self._trial = trial
        self.number: int = trial.number
        """Of its contender's trials."""
        self.options: Options = {name: suggest(trial, name, space[name]) for name in space}
        self._reported = len(trial.study.trials[self.number].intermediate_values)
        self.decided: int | None = trial.user_attrs.get(DECIDED)
        """The number of evaluations after which it was to be pruned; None: it was not."""

    def report(self, values: list[float]) -> None:
        """Reports evaluations to the pruner, until it decides to prune the trial.

        Args:
            values: of all evaluations until now, lower is better.
        """
        for number in range(self._reported + 1, len(values) + 1):
            if self.decided is not None:
                return
            self._trial.report(values[number - 1], number)
            self._reported = number
            if self._trial.should_prune():
                self.decided = number
                self._trial.set_user_attr(DECIDED, number)

    def tell(self, value: float) -> None:
        """Tells the value at the end, lower is better; nan and infinity are infinitely bad."""
        self._trial.study.tell(self.number, value if math.isfinite(value) else math.inf)

    def tell_pruned(self) -> None:
        """Tells that it was pruned."""
        self._trial.study.tell(self.number, state=TrialState.PRUNED)


class Study:
    """All trials of a contender.

    Args:
        journal: the file, which is made if it does not exist.
        label: of the contender.
        search: what is searched.
        seed: of the search, the same for all contenders.

    Raises:
        UserError: the journal cannot be read, or holds another search.
    """

    def __init__(self, journal: Path, label: str, search: Search, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler, self._seed, self._space = search.sampler, seed, search.spaces[label]
        described: dict[str, Any] = {
            "sampler": search.sampler,
            "pruner": search.pruner,
            "trials": search.trials,
            "seed": seed,
        }
        described["space"] = {name: str(domain) for name, domain in self._space.items()}
        try:
            self._study = optuna.create_study(
                study_name=label,
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
                pruner=pruner_of(search.pruner),
                load_if_exists=True,
            )
            known = self._study.user_attrs.get(SEARCH)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{journal} cannot be read or written: {one_line(error)[:200]}") from None
        if known is None:
            self._study.set_user_attr(SEARCH, described)
        elif known != described:
            raise UserError(
                f"{journal} holds another search of {label}, {json.dumps(known)}: choose another {SEARCH_FOLDER}"
            )

    @property
    def begun(self) -> int:
        """The number of trials that were made, told or not."""
        return len(self._study.get_trials(deepcopy=False))

    @property
    def untold(self) -> list[int]:
        """The numbers of the trials that were made and not told yet."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in running]

    def make(self) -> Trial:
        """Makes a trial, whose options depend on its number, the seed and the trials that are told or under way."""
        return self._with_options(self._study.ask())

    def reopen(self, number: int) -> Trial:
        """Goes on with a trial that is not told yet."""
        return self._with_options(reopened_trial(self._study, number))

    def _with_options(self, trial: optuna.Trial) -> Trial:
        """A sampler of its own for each trial makes its numbers the same after an interruption."""
        (seed,) = np.random.SeedSequence([self._seed, trial.number]).generate_state(1)
        self._study.sampler = SAMPLERS[self._sampler](seed=int(seed))
        return Trial(trial, self._space)

    def options(self) -> list[Options]:
        """The options of all trials, by number."""
        return [
            {name: value_of(self._space[name], trial.params[name]) for name in self._space}
            for trial in self._study.get_trials(deepcopy=False)
        ]


def pruner_of(name: str | None) -> optuna.pruners.BasePruner:
    """Optuna's pruner, which counts evaluations."""
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=RUNGS)
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.NopPruner()


def suggest(trial: optuna.Trial, name: str, domain: Interval | list[Any]) -> Any:
    """An option's value in a trial, drawn unless the trial has one already."""
    if isinstance(domain, Interval):
        drawn: Any = trial.suggest_float(name, domain.low, domain.high, log=domain.kind == "log")
    else:
        drawn = trial.suggest_categorical(name, list(by_text(domain)))
    return value_of(domain, drawn)


def value_of(domain: Interval | list[Any], drawn: Any) -> Any:
    """What a run gets for what was drawn."""
    return domain.rounded(drawn) if isinstance(domain, Interval) else by_text(domain)[drawn]


def by_text(values: list[Any]) -> dict[str, Any]:
    """The values of a list by their text, which is all that a journal can hold of any of them."""
    return {repr(value): value for value in values}
