"""Reads run directories in any state: finished or not, with half-written files."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cli.common import progress
from trainer.errors import DataError
from trainer.metrics import Metric, read_declarations
from trainer.options import flatten
from trainer.report.records import SPEEDS, MetricPoint, points, read_records, seconds_per_step, speeds
from trainer.rundir.files import CONFIG, MEMORY, METRICS, OVERRIDES, STATUS
from trainer.rundir.foreign import parse_json, parse_yaml, read_text
from trainer.rundir.frozen_config import check_checksum
from trainer.rundir.status import process_is_alive, read_status

STATES = (
    "finished",
    "failed",
    "pruned",
    "preempted",
    "running",
    "vanished",
    "queued",
    "unknown",
    "unreadable",
)
"""Those of `trainer.rundir.status.STATES` that the files of a run can show, in the order of tables.

vanished: status.json says running, and the process is gone; queued: there is only a config yet; unknown: status.json
cannot be read, or another version wrote it; unreadable: config.yaml cannot, so that the run belongs to no group.
"""

STARTED = {STATUS, METRICS}
"""Files of which a started run has at least one."""

MACHINE = ("host", "devices", "cpus", "threads", "torch")
"""Entries of environment.json on which times depend."""


@dataclass(frozen=True)
class RecordedRun:
    """A run, as far as the files in its directory tell."""

    path: Path
    config: dict[str, Any]
    """Every option by its dotted name."""
    state: str
    """One of STATES."""
    step: int = 0
    error: str | None = None
    primary: str | None = None
    """The metric that picks the best checkpoint; None if status.json does not say."""
    declared: Mapping[str, Metric] = field(default_factory=dict)
    """Direction and format of its metrics, by name without a split."""
    updated: float | None = None
    """When status.json was written, in seconds since 1970."""
    process: tuple[str, int] | None = None
    """Host and process number."""
    typed: list[str] = field(default_factory=list)
    """The words of the command line that its config was composed of."""
    environment: dict[str, Any] = field(default_factory=dict)
    """The entries of `MACHINE`."""
    evaluations: dict[str, list[MetricPoint]] = field(default_factory=dict)
    """By metric, in the order of steps."""
    training: dict[str, list[MetricPoint]] = field(default_factory=dict)
    seconds_per_step: float | None = None
    memory_mib: float | None = None
    """The highest."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Medians of `trainer.report.records.SPEEDS`, of those that it has."""
    step_memory: dict[str, float] = field(default_factory=dict)
    """MiB by what they are for, of a run with ``profile=memory``."""
    unreadable: int = 0
    """Lines of metrics.jsonl and clock.jsonl that are no records, such as a half-written last one."""

    @property
    def seconds(self) -> float:
        """Of training, until the last record with a time; 0 before the first."""
        curves = [*self.evaluations.values(), *self.training.values()]
        return max((point.seconds or 0.0 for points in curves for point in points), default=0.0)

    @property
    def seed(self) -> Any:
        """The option seed; None if the config has none."""
        return self.config.get("seed")


def read_runs(folders: Iterable[Path]) -> list[RecordedRun]:
    """The runs in these folders and below, each once, in the numerical order of their names.

    Raises:
        DataError: a folder does not exist or has no run in it.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a directory: give directories of runs, such as outputs/sweeps/DATE"
            )
        found = sorted(find_runs(folder), key=natural)
        if not found:
            raise DataError(
                f"{folder} contains no run: a run is a directory with config.yaml and status.json"
            )
        paths |= dict.fromkeys(path.resolve() for path in found)
    runs = [read_run(path) for path in progress(paths, "reading")]
    if all(run.state == "unreadable" for run in runs):
        raise DataError(f"{runs[0].path / CONFIG} cannot be read as the config of a run, nor can any other")
    return runs


def find_runs(folder: Path) -> Iterator[Path]:
    """The run directories in a folder and below, also behind links; none within another."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:  # a link led back here
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        if CONFIG in files and (STARTED & set(files) or is_frozen(Path(place))):
            folders.clear()
            yield Path(place)


def is_frozen(path: Path) -> bool:
    """Whether a directory's config is that of a run, as a launcher writes it: resolved, with all its parts."""
    config = read_config(path) or {}
    return isinstance(config.get("model.name"), str) and "seed" in config


def natural(path: Path) -> list[Any]:
    """A sort key that puts 10_run after 9_run."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def read_run(path: Path) -> RecordedRun:
    """The run in a directory, as far as its files can be read."""
    config = read_config(path)
    status = read_status(path)
    started = any(os.path.exists(path / name) for name in STARTED)
    clock, bad_clock = read_records(path / "clock.jsonl", ("seconds", "memory_mib", *SPEEDS))
    metrics, bad_metrics = read_records(path / METRICS)
    seconds = {(kind, step): values["seconds"] for kind, step, values in clock if "seconds" in values}
    return RecordedRun(
        path=path,
        config=config or {},
        state="unreadable" if config is None else state_of(status) if started else "queued",
        step=max([status.get("step", 0), *(step for _, step, _ in metrics)]),
        error=status.get("error"),
        primary=status.get("primary"),
        declared=read_declarations(status.get("declared")),
        updated=status.get("time"),
        process=(status["host"], status["pid"]) if {"host", "pid"} <= status.keys() else None,
        typed=read_typed(path),
        environment=read_environment(path),
        evaluations=points(metrics, "evaluation", seconds),
        training=points(metrics, "train", seconds),
        seconds_per_step=seconds_per_step(clock),
        memory_mib=max(
            (values["memory_mib"] for *_, values in clock if "memory_mib" in values), default=None
        ),
        speeds=speeds(clock),
        step_memory=read_step_memory(path),
        unreadable=bad_metrics + bad_clock,
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """The options of a run directory's config.yaml by their dotted names; None if it cannot be read."""
    try:
        text = read_text(path / CONFIG)
        check_checksum(text)
        config = parse_yaml(text)
    except (OSError, ValueError):
        return None
    return flatten(config) if isinstance(config, Mapping) else None


def read_typed(path: Path) -> list[str]:
    """The words in a run's overrides.yaml; empty if it cannot be read."""
    try:
        words = parse_yaml(read_text(path / OVERRIDES))
    except (OSError, ValueError):
        return []
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def read_environment(path: Path) -> dict[str, Any]:
    """The entries of `MACHINE` in a run's environment.json; empty if it cannot be read."""
    try:
        value = parse_json(read_text(path / "environment.json"))
    except (OSError, ValueError):
        return {}
    return {key: value[key] for key in MACHINE if key in value} if isinstance(value, dict) else {}


def read_step_memory(path: Path) -> dict[str, float]:
    """What the memory of a run's steps is for; empty if it was not measured or cannot be read."""
    try:
        value = parse_json(read_text(path / MEMORY))
    except (OSError, ValueError):
        return {}
    mib = value.get("mib") if isinstance(value, dict) else None
    return (
        {name: float(x) for name, x in mib.items() if isinstance(x, int | float)}
        if isinstance(mib, dict)
        else {}
    )


def state_of(status: Mapping[str, Any]) -> str:
    """The state in status.json, or vanished if the process that should be running is gone."""
    state = status.get("state")
    if state not in STATES or (state == "running" and not {"host", "pid"} <= status.keys()):
        return "unknown"
    gone = state == "running" and not process_is_alive(status["host"], status["pid"], status.get("started"))
    return "vanished" if gone else str(state)
