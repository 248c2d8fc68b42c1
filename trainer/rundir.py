"""The run directory: what a run leaves behind, besides what its monitors and checkpoints write."""

import fcntl
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.distributed import Ranks
from trainer.errors import UserError
from trainer.monitor import Progress, Sink
from trainer.source import source
from trainer.status import replace, write_status

CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"


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
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if unique:
            number, first = 1, path
            while path.exists():
                number, path = number + 1, first.with_name(f"{first.name}_{number}")
            path.mkdir()
            self._made = [path, *missing[1:]]
        else:
            path.mkdir(exist_ok=True)
            self._made = missing
        return path

    @classmethod
    def of_all(cls, ranks: Ranks, path: Path, *, unique: bool) -> "RunDirectory":
        """The directory that the first rank makes and locks, as each rank sees it."""
        made = ranks.together(lambda: cls(path, unique=unique) if ranks.first else None)
        agreed = ranks.exchange(made.path if made else path)[0]
        return made or _Visited(agreed)

    def release(self) -> None:
        os.close(self._lock)

    def remove_if_unused(self) -> None:
        """Takes the directory away again, and the parents made for it, if nothing was written."""
        for made in self._made:
            try:
                made.rmdir()
            except OSError:
                return

    def log(self, text: str) -> None:
        """Appends to run.log, past the monitors."""
        with (self.path / "run.log").open("a") as log:
            log.write(f"{text.rstrip()}\n")

    def write_description(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Writes config.yaml, overrides.yaml and environment.json."""
        freeze(self.path, config, overrides)
        replace(self.path / "environment.json", json.dumps(environment(), indent=2))


class _Visited(RunDirectory):
    """A run directory that another rank has made and locked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def release(self) -> None:
        pass

    def remove_if_unused(self) -> None:
        pass


class StatusSink(Sink):
    """Keeps the step and the last metrics in status.json up to date while a run goes on."""

    SECONDS = 1.0
    """Between two writes, at least."""

    def __init__(
        self, directory: RunDirectory, step: int, metrics: Mapping[str, float], primary: str
    ) -> None:
        self.directory = directory
        self.primary = primary
        self.metrics = dict(metrics)
        self._write(step)

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        if time.monotonic() - self._written >= self.SECONDS:
            self._write(progress.step)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        self.metrics = dict(metrics)
        self._write(progress.step)

    def _write(self, step: int) -> None:
        write_status(self.directory.path, "running", step=step, metrics=self.metrics, primary=self.primary)
        self._written = time.monotonic()


def freeze(path: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Writes a resolved config, of which the run in this directory can be started, and what the user typed.

    A run that is started from its frozen config has no overrides, and keeps those of its first start.
    """
    head = f"# The same run again, or on from its last checkpoint: {again(path)}\n"
    frozen = {**config, "hydra": frozen_hydra(path)}
    replace(path / CONFIG, head + yaml.safe_dump(frozen, sort_keys=False))
    if overrides or not (path / OVERRIDES).exists():
        replace(path / OVERRIDES, yaml.safe_dump(overrides))


def again(path: Path) -> str:
    """The command that goes on with the run in a directory."""
    return f"python -m trainer --config-path {path} --config-name config"


def frozen_hydra(path: Path) -> dict[str, Any]:
    """What keeps Hydra from adding anything of its own to a frozen config."""
    return {"run": {"dir": str(path)}, "output_subdir": None}


def environment() -> dict[str, Any]:
    """Versions, commit and uncommitted changes, host and devices."""
    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **source(),
    }
