"""The options of the config group ``launch``: where and how the runs of a sweep are executed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.errors import ConfigError, nearest
from trainer.formatting import printable
from trainer.options import Count, Natural, check_options, options_of


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options that all executors have."""

    dir: str
    """The sweep's directory."""
    snapshot: bool = True
    """Copy the code into the sweep's directory and execute the copy."""
    gpus_per_node: Natural = 1
    """One process per GPU; with 0 a node runs one process, on the CPU."""
    runs_per_job: Count = 1
    """Runs of one process that share a job: each has an equal part of its cores, and all have its GPU."""
    array_parallelism: Count | None = None
    """Largest number of jobs at a time; None: no limit."""
    max_requeues: Natural = 10
    """Largest number of restarts of a run that was preempted, timed out or killed."""
    notify: list[str] = field(default_factory=list)
    """URLs of apprise that get a message when all runs have ended; with references such as ${oc.env:NAME} in them."""

    nodes = 1

    @property
    def tasks_per_node(self) -> int:
        """Processes of one run on each node."""
        return max(1, self.gpus_per_node)

    @property
    def tasks(self) -> int:
        """Processes of one run on all nodes."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, kw_only=True)
class LocalOptions(CommonOptions):
    """Runs on this machine."""

    name: Literal["local"] = "local"
    array_parallelism: Count = 1
    max_requeues: Natural = 0


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(CommonOptions):
    """Jobs on a Slurm cluster."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: Count = 1
    """Nodes of one run."""
    cpus_per_task: Count = 4
    """Cores of one process, or of all runs that share a job."""
    mem: str | int | None = None
    """Memory per node, such as 64G; None: the partition's default."""
    time: str | int | None = None
    """Time limit of one start, in minutes or as HH:MM:SS; max: the partition's longest; None: its default."""
    constraint: str | None = None
    exclude: str | None = None
    signal_seconds: Count = 120
    """How long before the time limit a run gets SIGUSR2, so that it can save a checkpoint."""
    sbatch: dict[str, Any] | None = None
    """Further options of sbatch by their long names."""
    setup: list[str] = field(default_factory=list)
    """Shell commands that a job executes before the run."""


SCRIPT_OPTIONS = ("partition", "account", "qos", "mem", "time", "constraint", "exclude")
"""Options that stand in the job script as text."""

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
    options = KINDS[name](**check_options(options_of(KINDS[name]), values, "launch"))
    check_pack(options)
    if isinstance(options, SlurmOptions):
        check_script(options)
    return options


def check_pack(options: LaunchOptions) -> None:
    """Refuses runs in one job that need more than they would have there.

    Raises:
        ConfigError: a run has several processes, or there are fewer cores than runs.
    """
    packed = options.runs_per_job
    if packed > 1 and options.tasks > 1:
        raise ConfigError(
            f"launch.runs_per_job={packed} is for runs of one process, but launch.nodes={options.nodes} and "
            f"launch.gpus_per_node={options.gpus_per_node} give a run {options.tasks}: set launch.runs_per_job=1"
        )
    if isinstance(options, SlurmOptions) and options.cpus_per_task < packed:
        raise ConfigError(
            f"launch.runs_per_job={packed} needs a core for each run, but the job has "
            f"launch.cpus_per_task={options.cpus_per_task}: set at least {packed}"
        )


def check_script(options: SlurmOptions) -> None:
    """Refuses values that are more than one line, since they stand in the job script among lines of other meaning.

    Raises:
        ConfigError: an option holds a character that cannot be printed.
    """
    values = {name: getattr(options, name) for name in SCRIPT_OPTIONS}
    values |= {f"sbatch.{name}": f"{name}={value}" for name, value in (options.sbatch or {}).items()}
    for name, value in values.items():
        if not str(value).isprintable():
            raise ConfigError(
                f"launch.{printable(name)}={value!r} is wrong: it must be one line of printable characters"
            )
