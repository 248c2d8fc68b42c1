"""What all trackers share: which run is meant, which numbers it has, and the interface of a tracker."""

import importlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import MissingExtra

TRACKERS = {"mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",), "wandb": ("wandb",)}
"""Their names, which are those of the extras, of the modules here and of the sinks; and the packages each needs."""

PROJECT = "adafisher-trainer"
"""Under which a tracker files the runs, unless its own environment variable says another."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it."""

    directory: Path
    name: str
    options: Mapping[str, Any]
    """Every option by its dotted name."""

    @property
    def identity(self) -> str:
        """The same for every session of the run and every push: 32 hexadecimal digits of its directory's path."""
        return uuid.uuid5(uuid.NAMESPACE_URL, self.directory.resolve().as_uri()).hex


class Tracker(ABC):
    """One run in a tracker. Every method may raise whatever the tracker's package does.

    Args:
        run: that is tracked.
        id: the tracker's own name of its run, to go on with it; None: the tracker's run of this identity, or a new one.
        anew: whether the run starts from nothing, so that what the tracker has of this identity is another run.
    """

    id: str
    """The tracker's own name of the run."""
    steps: dict[str, set[int]]
    """At which the tracker has a value, by name: set as the run is opened. No tracker can remove a point again, so
    that a resumed run and a push leave out those that are there, which are the same."""

    @abstractmethod
    def __init__(self, run: TrackedRun, id: str | None, anew: bool) -> None:
        """Opens the run in the tracker."""

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds the values at a step that the tracker does not have yet.

        Args:
            step: of the optimizer.
            seconds: of training until then, summed over restarts.
            values: by name; they may be nan or infinite.
        """
        new = {name: value for name, value in values.items() if step not in self.steps.get(name, ())}
        for name in new:
            self.steps.setdefault(name, set()).add(step)
        if new:
            self.add(step, seconds, new)

    @abstractmethod
    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds values that the tracker does not have; the arguments are those of `log`."""

    @abstractmethod
    def flush(self) -> None:
        """Has all that was logged stored."""

    @abstractmethod
    def close(self, state: str) -> None:
        """Stores all, and how the run ended: a state of `trainer.rundir.status.STATES`."""


def need_tracker(name: str, what: str) -> None:
    """Checks that a tracker's packages are installed, without importing them, which takes a second or more.

    Args:
        name: of the tracker.
        what: needs it, such as an option.

    Raises:
        MissingExtra: one is not.
    """
    for package in TRACKERS[name]:
        if find_spec(package) is None:
            raise MissingExtra(what, package, name)


def open_tracker(name: str, run: TrackedRun, *, id: str | None = None, anew: bool = False) -> Tracker:
    """A run in the tracker of this name; the arguments are those of `Tracker`."""
    opened: Tracker = importlib.import_module(f"trainer.trackers.{name}").TRACKER(run, id, anew)
    return opened


def in_slurm_job() -> bool:
    """Whether this process is part of a Slurm job, whose node may reach no server."""
    return "SLURM_JOB_ID" in os.environ


def tracked(metrics: Mapping[str, float], clock: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a train or an evaluation record as trackers name them.

    Args:
        metrics: ``SPLIT/loss`` and the like stay as they are; those without a ``/``, such as lr, go under ``train/``.
        clock: what depends on the machine, such as samples_per_second; goes under ``speed/``.
    """
    named = {name if "/" in name else f"train/{name}": value for name, value in metrics.items()}
    return {**named, **{f"speed/{name}": value for name, value in clock.items()}}


def steps_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[int]]:
    """The steps at which there is a value, by name, of rows that have a column ``step``; others are left out."""
    steps: dict[str, set[int]] = {}
    for row in rows:
        for name in row.keys() - {"step"} if "step" in row else ():
            if row[name] is not None:
                steps.setdefault(name, set()).add(int(row["step"]))
    return steps
