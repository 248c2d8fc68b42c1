"""The directory of a sweep: its record, its runs, their jobs and the code that they execute."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths

from launch.options import LaunchOptions, check_launch
from trainer.errors import ConfigError, DataError, UserError
from trainer.options import Natural, build_dataclass, check_options, options_of, to_dict
from trainer.rundir.files import (
    CHECKSUM,
    FORMAT,
    atomic_write_text,
    check_format,
    make_directories,
    remove_empty,
    with_checksum,
)
from trainer.rundir.frozen_config import arguments, plugins_of
from trainer.rundir.provenance import CODE

RECORD = "sweep.json"

LOCAL_ID = r"(?P<host>[^/\s]+)\.(?P<pid>[1-9][0-9]{0,8})(-(?P<started>[0-9]{1,18}))?\.[0-9]+"
"""The id of a job on this machine: the process that executes it, when that started, and the number of the run."""

JOB_IDS = {"local": LOCAL_ID, "slurm": "[0-9]+(_[0-9]+)?"}
"""Patterns of job ids, by the kind of the launch."""


@dataclass
class SweepRun:
    """One run of a sweep."""

    name: str
    """The run's number and overrides; also the name of its directory in the sweep's."""
    overrides: list[str]
    """All overrides of the run, including those that the sweep's runs share."""
    jobs: list[str] = field(default_factory=list)
    """Ids of its jobs, the newest last; none before it is submitted."""
    cancelled: str | None = None
    """The job that ``python -m launch cancel`` cancelled."""
    stage: Natural = 0
    """It starts once all runs of earlier stages, which are submitted with it, have ended."""


@dataclass
class SweepRecord:
    """Content of sweep.json."""

    format: int
    cwd: str
    comparison: bool
    launch: dict[str, Any]
    runs: list[SweepRun]


@dataclass
class Sweep:
    """A sweep in its directory."""

    path: Path
    cwd: Path
    """The directory in which the user launched it."""
    options: LaunchOptions
    runs: list[SweepRun]
    comparison: bool = False
    """Whether each run is a comparison of contenders with one seed."""

    @property
    def code(self) -> Path:
        """The directory of the code that the jobs execute: the snapshot, or the code in place."""
        return self.path / "code" if self.options.snapshot else CODE

    @property
    def jobs(self) -> Path:
        """The directory of job scripts, pickled tasks and logs."""
        return self.path / "jobs"

    def directory(self, run: SweepRun) -> Path:
        """The run directory."""
        return self.path / run.name

    def logs(self, run: SweepRun) -> list[Path]:
        """The output of each process of the run's newest job; where runs share a job, its number 0 is the job's own."""
        job = run.jobs[-1]
        together = [each.name for each in self.runs if job in each.jobs]
        first = 0 if self.options.runs_per_job == 1 else 1 + together.index(run.name)
        return [JobPaths(self.jobs, job, first + rank).stdout for rank in range(self.options.tasks)]

    def job_log(self, job: str) -> Path:
        """The output of a job's script, and that of its first process unless runs share the job."""
        stdout: Path = JobPaths(self.jobs, job, 0).stdout
        return stdout

    def command(self, run: SweepRun) -> list[str]:
        """The module that the processes of a run execute, and its arguments."""
        directory = str(self.directory(run))
        if self.comparison:
            return ["trainer.compare", *run.overrides, f"compare.dir={directory}"]
        return ["trainer", *arguments(self.directory(run), plugins_of(self.directory(run)))]

    def write(self) -> None:
        """Replaces sweep.json.

        Raises:
            OSError: it cannot be written; the old one is as it was.
        """
        record = SweepRecord(FORMAT, str(self.cwd), self.comparison, to_dict(self.options), self.runs)
        atomic_write_text(self.path / RECORD, json.dumps(with_checksum(to_dict(record)), indent=1))


def by_stage(runs: Sequence[SweepRun]) -> list[list[SweepRun]]:
    """The runs of each stage, in the order in which the stages start."""
    return [[run for run in runs if run.stage == stage] for stage in sorted({run.stage for run in runs})]


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory.

    Raises:
        DataError: there is none, another version wrote it, or its record is damaged.
    """
    path = path.absolute()
    file = path / RECORD
    try:
        values = json.loads(file.read_text())
    except RecursionError:
        raise DataError(f"{file} is damaged: it is nested too deep") from None
    except OSError:
        raise DataError(
            f"{path} has no {RECORD} in it: give the sweep directory that python -m launch printed"
        ) from None
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} is damaged: it must hold an object")
    check_format(values, file)
    values.pop(CHECKSUM, None)
    try:
        record = build_dataclass(SweepRecord, check_options(options_of(SweepRecord), values, ""))
        options = check_launch(record.launch)
    except ConfigError as error:
        raise DataError(f"{file} is damaged: {error}") from None
    for job in (job for run in record.runs for job in [*run.jobs, *filter(None, [run.cancelled])]):
        if not re.fullmatch(JOB_IDS[options.name], job):
            raise DataError(f"{file} is damaged: {job!r} is not the id of a job with launch={options.name}")
    for run in record.runs:
        if not re.fullmatch(r"[0-9]+_[\w.,=+-]+", run.name):
            raise DataError(f"{file} is damaged: {run.name!r} is not the name of a run")
    return Sweep(path, Path(record.cwd), options, record.runs, record.comparison)


def executor_of(job: str) -> tuple[str, int, int | None]:
    """The process that executes a local job: host, number and start time, as `process_is_alive` takes them."""
    found = re.fullmatch(LOCAL_ID, job)
    assert found is not None, "read_sweep refuses others"
    return found["host"], int(found["pid"]), int(found["started"]) if found["started"] else None


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """Makes a directory that only its owner may enter; removes it, and parents made for it, if the context fails.

    Raises:
        UserError: it exists already or cannot be made or filled.
    """
    if path.exists():
        raise UserError(
            f"{path} exists already: choose another launch.dir, or see python -m launch status {path}"
        )
    made: list[Path] = []
    try:
        made = make_directories(path, 0o700)
        yield
    except BaseException as error:
        if made:
            shutil.rmtree(path, ignore_errors=True)
            remove_empty(made)
        if isinstance(error, OSError):
            raise UserError(f"cannot make the sweep directory {path}: {error.strerror or error}") from None
        raise
