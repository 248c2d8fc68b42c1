"""The run directory: what a run leaves behind, besides what its monitors and checkpoints write."""

import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from trainer.errors import UserError
from trainer.monitor import Progress, Sink

STATUS = "status.json"
CONFIG = "config.yaml"


class RunDirectory:
    """A directory that one process at a time trains in.

    Args:
        path: made if it does not exist.
        unique: the path is a suggestion: if it exists, take it with a number behind.

    Raises:
        UserError: another process trains there, or the directory cannot be made.
    """

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

    def release(self) -> None:
        os.close(self._lock)

    def remove_if_unused(self) -> None:
        """Takes the directory away again, and the parents made for it, if nothing was written."""
        for made in self._made:
            try:
                made.rmdir()
            except OSError:
                return

    def read_status(self) -> dict[str, Any]:
        """The last written status; empty where there is none."""
        try:
            return json.loads((self.path / STATUS).read_text())
        except (OSError, ValueError):
            return {}

    def write_status(self, state: str, **fields: Any) -> None:
        """Replaces status.json at once: a reader sees the old one or the new one.

        Args:
            state: running, finished, failed or preempted.
            fields: step, metrics, primary (the metric that picks the best), error.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        replace(self.path / STATUS, json.dumps({"state": state, **fields, **process}, indent=2))

    def write_description(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Writes config.yaml, overrides.yaml and environment.json."""
        frozen = {**config, "hydra": frozen_hydra(self.path)}
        head = f"# The same run again, or on from its last checkpoint: {again(self.path)}\n"
        replace(self.path / CONFIG, head + yaml.safe_dump(frozen, sort_keys=False))
        replace(self.path / "overrides.yaml", yaml.safe_dump(overrides))
        replace(self.path / "environment.json", json.dumps(environment(), indent=2))


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
        self.directory.write_status("running", step=step, metrics=self.metrics, primary=self.primary)
        self._written = time.monotonic()


def again(path: Path) -> str:
    """The command that goes on with the run in a directory."""
    return f"python -m trainer --config-path {path} --config-name config"


def frozen_hydra(path: Path) -> dict[str, Any]:
    """What keeps Hydra from adding anything of its own to a frozen config."""
    return {"run": {"dir": str(path)}, "output_subdir": None}


def replace(path: Path, text: str) -> None:
    """Writes a file beside its name and renames it there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)


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
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the code that runs; None where it is not in a repository."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
