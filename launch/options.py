"""The options of the ``launch`` group: where and how the runs of a sweep are executed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.errors import ConfigError, nearest
from trainer.options import Count, Natural, check_options, options_of


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every way to launch a sweep has."""

    dir: str
    """The sweep's directory."""
    snapshot: bool = True
    """Copy the code beside the runs and execute the copy."""
    gpus_per_node: Natural = 1
    """One process each; with 0 a node runs one process, on the CPU."""
    array_parallelism: Count | None = None
    """Runs at a time."""
    max_requeues: Natural = 10
    """Times that a run is started again after it was preempted, timed out or killed."""

    nodes = 1

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def tasks(self) -> int:
        """Processes of one run."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, kw_only=True)
class LocalOptions(CommonOptions):
    name: Literal["local"] = "local"
    array_parallelism: Count = 1
    max_requeues: Natural = 0


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(CommonOptions):
    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: Count = 1
    """Of one run."""
    cpus_per_task: Count = 4
    mem: str | int | None = None
    """Memory of a node, such as 64G; null: the partition's default."""
    time: str | int | None = None
    """Limit of one start, in minutes or as HH:MM:SS; null: the partition's default."""
    constraint: str | None = None
    exclude: str | None = None
    signal_seconds: Count = 120
    """Before the time limit, or at preemption, a run gets SIGUSR2 that long before it is killed."""
    sbatch: dict[str, Any] | None = None
    """More options of sbatch by their long names."""
    setup: list[str] = field(default_factory=list)
    """Shell commands that a job executes first."""


LaunchOptions = LocalOptions | SlurmOptions
KINDS: dict[str, type[LaunchOptions]] = {"local": LocalOptions, "slurm": SlurmOptions}


def check_launch(values: Mapping[str, Any]) -> LaunchOptions:
    """The typed options of plain values.

    Raises:
        ConfigError: an option is unknown or has the wrong type or range.
    """
    name = values.get("name")
    if name not in KINDS:
        raise ConfigError(f"unknown launch.name {name!r}{nearest(str(name), KINDS)}")
    return KINDS[name](**check_options(options_of(KINDS[name]), values, "launch"))
