"""The run directory: made, locked, described, and removed again if it was not used."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.rundir.files import atomic_write_text, make_directories, remove_empty
from trainer.rundir.frozen_config import freeze
from trainer.rundir.provenance import environment


class RunDirectory:
    """A directory that one process at a time trains in.

    Args:
        path: made if it does not exist.
        unique: the path is a suggestion: if it exists, take it with a number appended.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """

    path: Path
    """Absolute."""

    def __init__(self, path: Path, *, unique: bool) -> None:
        path = path.absolute()
        self._made: list[Path] = []
        try:
            self.path = self._make(path, unique)
            self._lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"the run directory {path} cannot be made: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {self.path}: wait for it or choose another hydra.run.dir"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _make(self, path: Path, unique: bool) -> Path:
        number, first = 1, path
        while unique and path.exists():
            number, path = number + 1, first.with_name(f"{first.name}_{number}")
        self._made = make_directories(path, exist_ok=not unique)
        return path

    def release(self) -> None:
        """Lets other processes train there."""
        os.close(self._lock)

    def remove_if_unused(self) -> None:
        """Removes the directory, and the parents that were made for it, if nothing was written."""
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
