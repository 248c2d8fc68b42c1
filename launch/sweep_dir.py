"""The directory of a sweep: its runs, their jobs, the code that they execute."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.options import LaunchOptions, check_launch
from trainer.errors import DataError, UserError
from trainer.rundir.files import atomic_write_text
from trainer.rundir.provenance import CODE

RECORD = "sweep.json"


@dataclass
class SweepRun:
    """One run of a sweep."""

    name: str
    """Of its directory below the sweep's; it begins with the run's number."""
    overrides: list[str]
    """As composed, those of the whole sweep included."""
    jobs: list[str] = field(default_factory=list)
    """Ids, the newest last; none before it is submitted."""
    cancelled: str | None = None
    """The job that ``python -m launch cancel`` has ended."""


@dataclass
class Sweep:
    """What sweep.json holds."""

    path: Path
    cwd: Path
    """Where the user launched it."""
    options: LaunchOptions
    runs: list[SweepRun]
    comparison: bool = False
    """Whether each run is a comparison of contenders with one seed."""

    @property
    def code(self) -> Path:
        return self.path / "code" if self.options.snapshot else CODE

    @property
    def jobs(self) -> Path:
        """Scripts, pickles and logs."""
        return self.path / "jobs"

    def directory(self, run: SweepRun) -> Path:
        return self.path / run.name

    def command(self, run: SweepRun) -> list[str]:
        """The module that the processes of a run execute, and its arguments."""
        directory = str(self.directory(run))
        if self.comparison:
            return ["trainer.compare", *run.overrides, f"compare.dir={directory}"]
        return ["trainer", "--config-path", directory, "--config-name", "config"]

    def write(self) -> None:
        record = {
            "cwd": str(self.cwd),
            "comparison": self.comparison,
            "launch": dataclasses.asdict(self.options),
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }
        atomic_write_text(self.path / RECORD, json.dumps(record, indent=1))


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory.

    Raises:
        DataError: there is none.
    """
    path = path.absolute()
    try:
        record: Mapping[str, Any] = json.loads((path / RECORD).read_text())
    except OSError:
        raise DataError(
            f"{path} has no sweep in it: give the directory that python -m launch named"
        ) from None
    except ValueError:
        raise DataError(f"{path / RECORD} cannot be read") from None
    runs = [SweepRun(**run) for run in record["runs"]]
    options = check_launch(record["launch"])
    return Sweep(path, Path(record["cwd"]), options, runs, record.get("comparison", False))


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Makes a directory that only its owner may enter; takes it away again if the context fails.

    Raises:
        UserError: it exists already or cannot be made or filled.
    """
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    if not missing:
        raise UserError(
            f"{path} exists already: choose another launch.dir, or see python -m launch status {path}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        yield
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        for made in missing[1:]:
            if any(made.iterdir()):
                break
            made.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"the sweep directory {path} cannot be made: {error.strerror or error}") from None
        raise
