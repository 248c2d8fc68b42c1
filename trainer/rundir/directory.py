"""The run directory: made, locked, described, and removed again if it was not used."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.rundir.files import atomic_write_text, make_directories, remove_empty
from trainer.rundir.frozen_config import freeze
from trainer.rundir.lock import LOCK, DirectoryLock
from trainer.rundir.provenance import environment

ATTEMPTS = 100
"""To lock a directory that other processes keep taking away."""


class RunDirectory:
    """A directory that one process at a time trains in.

    Args:
        path: made if it does not exist.
        unique: the path is a suggestion: if it exists, take it with a number appended.
        option: which named it, for messages.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """

    path: Path
    """Absolute."""

    def __init__(self, path: Path, *, unique: bool, option: str = "hydra.run.dir") -> None:
        path = path.absolute()
        self._made: list[Path] = []
        try:
            self.path, self._lock = self._make_and_lock(path, unique)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {path}: wait for it or choose another {option}"
            ) from None
        except OSError as error:
            raise UserError(f"the run directory {path} cannot be made: {error.strerror}") from None

    def _make_and_lock(self, path: Path, unique: bool) -> tuple[Path, DirectoryLock]:
        for attempt in itertools.count(1):
            try:
                made = self._make(path, unique)
                return made, DirectoryLock(made)
            except FileNotFoundError:  # a process that had made it, or its parents, took them away just now
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    def _make(self, path: Path, unique: bool) -> Path:
        for number in itertools.count():
            free = path.with_name(f"{path.name}_{number}") if number else path
            try:
                self._made = make_directories(free, exist_ok=not unique)
            except FileExistsError:
                if not unique or not free.parent.is_dir():
                    raise
            else:
                return free
        raise AssertionError

    def release(self) -> None:
        """Lets other processes train here."""
        self._lock.release()

    def remove_if_unused(self) -> None:
        """Removes the directory, and the parents that were made for it, if nothing was written; before `release`."""
        with suppress(OSError):  # somebody else removed it
            if self._made and [entry.name for entry in self.path.iterdir()] == [LOCK]:
                self._lock.path.unlink()
                remove_empty(self._made)

    def log(self, text: str) -> None:
        """Appends to run.log directly, when the monitors may be closed."""
        with (self.path / "run.log").open("a") as log:
            log.write(f"{text.rstrip()}\n")

    def write_description(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Writes config.yaml, overrides.yaml and environment.json."""
        freeze(self.path, config, overrides)
        atomic_write_text(self.path / "environment.json", json.dumps(environment(), indent=2))


class VisitedRunDirectory(RunDirectory):
    """A run directory that another rank has made and locked, and will release."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def release(self) -> None:
        """Does nothing."""

    def remove_if_unused(self) -> None:
        """Does nothing."""
