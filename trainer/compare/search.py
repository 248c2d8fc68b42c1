"""Makes the trials of a search, alone or together with other processes, on other machines too.

A trial belongs to no process. It has a place in the journal and a run directory, and whoever holds its lock trains it:
if that process is stopped or killed, the next one that looks for something to do goes on with the same trial.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.compare.arguments import Command
from trainer.compare.contenders import Contender, rotated
from trainer.compare.evaluations import Verdict, final_value
from trainer.compare.planning import PlannedRun, plan, run_path
from trainer.compare.runner import Runner
from trainer.compare.study import Study, Trial
from trainer.compare.tuning import TriedOptions
from trainer.errors import UserError
from trainer.report.read_runs import read_run
from trainer.rundir.lock import DirectoryLock

JOURNAL = "search.journal"
LOCKS = "locks"
CHOOSING, REFERENCE = "choosing", "reference"
"""Files in that folder: of who chooses the next trial, and of who measures the budget."""

PATIENCE = 0.5
"""Seconds between two looks at what another process does."""

KILLED_TOGETHER = 2.0
"""Seconds within which the processes of a job are killed."""


@dataclass(frozen=True)
class Claimed:
    """A trial that this process trains."""

    trial: Trial
    planned: PlannedRun
    lock: DirectoryLock


class SearchRun:
    """The trials of all contenders, in the folder of a search.

    Args:
        command: what is compared and searched.
        folder: of the search, an absolute path; made if it does not exist.
        runner: trains.
    """

    def __init__(self, command: Command, folder: Path, runner: Runner) -> None:
        assert command.search is not None
        self.command, self.folder, self.runner = command, folder, runner
        self.search = command.search
        try:
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} of the search cannot be made: {error.strerror}") from None
        with self.locked(CHOOSING):
            self.studies = {
                each.label: Study(folder / JOURNAL, each.label, self.search, command.tuning_seed)
                for each in command.contenders
            }

    def run(self, seconds: float | None, to_the_end: bool) -> None:
        """Makes trials as long as there are any to be made.

        Args:
            seconds: the budget of each; None: that of the contender's config.
            to_the_end: wait for the trials of other processes, and go on with those that they leave.

        Raises:
            UserError: a run cannot be started.
            Interrupted: by a signal.
        """
        while True:
            if claimed := self.claim(seconds):
                try:
                    self.make(claimed)
                finally:
                    claimed.lock.release()
            elif not to_the_end or not any(study.untold for study in self.studies.values()):
                return
            else:
                self.runner.pause(PATIENCE)

    def claim(self, seconds: float | None) -> Claimed | None:
        """A trial that a process has left, or else a new one of a contender that has the fewest; None: no more."""
        with self.locked(CHOOSING):
            for each in self.command.contenders:
                study = self.studies[each.label]
                for number in study.untold:
                    lock = self.try_lock(self.lock_name(each, number))
                    if lock and number in study.untold:  # not told just before it was unlocked
                        return self.claimed(each, study.reopen(number), lock, seconds)
                    if lock:
                        lock.release()
            begun = {label: study.begun for label, study in self.studies.items()}
            fewest = min(begun.values())
            if fewest >= self.search.trials:
                return None
            each = next(c for c in rotated(self.command.contenders, fewest) if begun[c.label] == fewest)
            trial = self.studies[each.label].make()
            lock = self.try_lock(self.lock_name(each, trial.number))
            assert lock is not None, "the trial is new, and nobody else looks for one"
            return self.claimed(each, trial, lock, seconds)

    def claimed(self, each: Contender, trial: Trial, lock: DirectoryLock, seconds: float | None) -> Claimed:
        """The trial with its run directory."""
        place, seed = self.place(each, trial.number), self.command.tuning_seed
        return Claimed(trial, plan(place, each, trial.options, seed, seconds), lock)

    def place(self, each: Contender, trial: int) -> Path:
        """What the path of a trial's run begins with: its number in the order of a search by one process."""
        contenders = self.command.contenders
        number = trial * len(contenders) + rotated(contenders, trial).index(each)
        return self.folder / "tune" / str(number)

    def lock_name(self, each: Contender, trial: int) -> str:
        """The file by which a process holds a trial."""
        return f"trial_{self.place(each, trial).name}"

    def make(self, claimed: Claimed) -> None:
        """Trains a trial to its end, or until it is pruned, and tells its study how that came out."""
        trial, planned, pruner = claimed.trial, claimed.planned, self.search.pruner
        if pruner:
            (run,) = self.runner.run([planned], "tune", Verdict(trial, planned.path, pruner))
        else:
            (run,) = self.runner.run([planned], "tune")
        if (
            run.state == "vanished"
        ):  # whoever killed it may be about to end this process too, and the trial goes on
            self.runner.pause(KILLED_TOGETHER)
        if run.state == "pruned":
            trial.tell_pruned()
        else:
            trial.tell(final_value(run) if run.state == "finished" else math.inf)

    def tried(self) -> list[TriedOptions]:
        """All trials of all contenders; each has a run."""
        seed = self.command.tuning_seed
        return [
            TriedOptions(
                each.label, options, read_run(run_path(self.place(each, number), each, options, seed))
            )
            for each in self.command.contenders
            for number, options in enumerate(self.studies[each.label].options())
        ]

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Waits for a lock, and holds it."""
        while (lock := self.try_lock(name)) is None:
            self.runner.pause(PATIENCE / 10)
        try:
            yield
        finally:
            lock.release()

    def try_lock(self, name: str) -> DirectoryLock | None:
        """A lock; None if another process holds it."""
        try:
            return DirectoryLock(self.folder / LOCKS, name)
        except BlockingIOError:
            return None
        except OSError as error:
            raise UserError(
                f"the folder {self.folder} of the search cannot be used: {error.strerror}"
            ) from None
