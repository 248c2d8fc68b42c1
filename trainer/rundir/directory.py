"""The run directory: made, locked, described, and removed again if it was not used."""

import itertools
import json
import time
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
                if not free.parent.exists():  # it, and what existed in it, was taken away just now
                    raise FileNotFoundError(f"{free.parent} was removed") from None
                if not unique or not free.parent.is_dir():
                    raise
            else:
                return free
        raise AssertionError

    def release(self) -> None:
        """Lets other processes train here."""
        self._lock.release()

    def remove_if_unused(self) -> None:
        """Removes the directory, and the parents that were made for it, if nothing was written; before `release`.

        The lock ends before its directory does: NFS keeps a file that is open there under another name.
        """
        with suppress(OSError):  # somebody else removed it
            if self._made and [entry.name for entry in self.path.iterdir()] == [LOCK]:
                self._lock.path.unlink()
                self._lock.release()
                remove_empty(self._made)

    def log(self, text: str) -> None:
        """Appends to run.log directly, when the monitors may be closed."""
        with (self.path / "run.log").open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{text.rstrip()}\n")

    def write_description(self, config: dict[str, Any], overrides: list[str], step: int) -> None:
        """Writes config.yaml, overrides.yaml and environment.json.

        Args:
            config: of the run.
            overrides: what the user typed.
            step: that this session starts at.

        Raises:
            UserError: one cannot be written.
        """
        try:
            freeze(self.path, config, overrides)
            record = with_session(self.path / "environment.json", environment(), step)
            atomic_write_text(self.path / "environment.json", json.dumps(record, indent=2))
        except OSError as error:
            raise UserError(f"the run directory {self.path} cannot be written: {error.strerror}") from None


def with_session(file: Path, now: dict[str, Any], step: int) -> dict[str, Any]:
    """The environment of a run's first session, with those of later ones under ``sessions``, as far as they differ.

    Args:
        file: the record of the sessions before; there may be none.
        now: the environment of this session.
        step: that this session starts at.
    """
    try:
        first = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return now
    if not isinstance(first, dict) or not isinstance(before := first.get("sessions", []), list):
        return now
    changed = {key: value for key, value in now.items() if first.get(key) != value}
    session = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, **changed}
    return {**first, "sessions": [*before, session]}


class VisitedRunDirectory(RunDirectory):
    """A run directory that another rank has made and locked, and will release."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def release(self) -> None:
        """Does nothing."""

    def remove_if_unused(self) -> None:
        """Does nothing."""
