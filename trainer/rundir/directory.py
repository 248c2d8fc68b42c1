"""The run directory: what a run leaves behind, besides what its monitors and checkpoints write."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.rundir.files import atomic_write_text
from trainer.rundir.frozen_config import freeze
from trainer.rundir.lock import LOCK, DirectoryLock
from trainer.rundir.provenance import environment

ATTEMPTS = 100
"""To lock a directory that other processes keep taking away."""


class RunDirectory:
    """A directory that one process at a time trains in.

    Args:
        path: made if it does not exist.
        unique: the path is a suggestion: if it exists, take it with a number behind.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """

    path: Path

    def __init__(self, path: Path, *, unique: bool) -> None:
        path = path.absolute()
        self._made: list[Path] = []
        try:
            self.path, self._lock = self._make_and_lock(path, unique)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {path}: wait for it or choose another hydra.run.dir"
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
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not unique:
            path.mkdir(exist_ok=True)
            self._made = missing
            return path
        numbered = (path.with_name(f"{path.name}_{number}") for number in itertools.count(1))
        for free in itertools.chain([path], numbered):
            with suppress(FileExistsError):
                free.mkdir()
                break
        self._made = [free, *(parent for parent in missing if parent != path)]
        return free

    def release(self) -> None:
        """Lets other processes train here."""
        self._lock.release()

    def remove_if_unused(self) -> None:
        """Takes the directory away again, and the parents made for it, if nothing was written; before `release`."""
        with suppress(OSError):  # another process has made something in it
            if self._made and [entry.name for entry in self.path.iterdir()] == [LOCK]:
                self._lock.path.unlink()
                for made in self._made:
                    made.rmdir()

    def log(self, text: str) -> None:
        """Appends to run.log, past the monitors."""
        with (self.path / "run.log").open("a") as log:
            log.write(f"{text.rstrip()}\n")

    def write_description(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Writes config.yaml, overrides.yaml and environment.json."""
        freeze(self.path, config, overrides)
        atomic_write_text(self.path / "environment.json", json.dumps(environment(), indent=2))


class VisitedRunDirectory(RunDirectory):
    """A run directory that another rank has made and locked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def release(self) -> None:
        """The other rank does."""

    def remove_if_unused(self) -> None:
        """The other rank does."""
