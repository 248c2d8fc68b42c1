"""From a command line to the runs of a sweep, each composed and checked, before anything is made."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from launch.options import LaunchOptions, check_launch
from trainer.config.command_line import parse_arguments, parse_overrides
from trainer.config.compose import compose, compose_grid, file_name, hydra_session
from trainer.config.recipes import warn_of_kept_options
from trainer.config.schema import Config
from trainer.distributed.strategies import STRATEGIES
from trainer.errors import ConfigError
from trainer.options import to_dict
from trainer.rundir.frozen_config import freeze

NOT_OF_SWEEPS = (
    "config_path",
    "config_name",
    "cfg",
    "info",
    "resolve",
    "shell_completion",
    "hydra_help",
    "package",
    "experimental_rerun",
)
"""Flags of Hydra's that say nothing of a sweep."""


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep: a training run, or a comparison with one seed."""

    name: str
    """Its number and what tells it from the others, fit for a directory."""
    overrides: list[str]
    """The words of its command line."""
    plugins: list[str]
    """The modules that its config names."""
    freeze: Callable[[Path], None]
    """Writes into the run's directory what the run will read."""
    stage: int = 0
    """It starts once all runs of earlier stages have ended."""


def compose_sweep(arguments: list[str]) -> tuple[LaunchOptions, list[SweepPoint]]:
    """Composes and checks the launch and every point of the grid.

    Raises:
        UserError: an option or a point is wrong.
    """
    args = parse_arguments(arguments)
    for flag in NOT_OF_SWEEPS:
        if getattr(args, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')} is for python -m trainer, not for python -m launch"
            )
    launch, train = split(args.overrides)
    options = launch_options(args, launch)
    grid = compose_grid(args, train)
    for point in grid:
        check_tasks(options, point.config)
    warn_of_kept_options(args, [point.overrides for point in grid])
    names = point_names([point.overrides for point in grid])
    return options, [
        SweepPoint(
            name,
            point.overrides,
            list(point.config.plugins),
            partial(freeze, config=to_dict(point.config), overrides=point.overrides),
        )
        for name, point in zip(names, grid, strict=True)
    ]


def check_tasks(options: LaunchOptions, config: Config) -> None:
    """Refuses a strategy that does not fit the number of processes of a run.

    Raises:
        ConfigError: there are several for a strategy of one process, or one for a strategy of several.
    """
    parallel = config.parallel["name"]
    needs_several = STRATEGIES.get(parallel).target.min_ranks > 1
    if not needs_several and options.tasks > 1:
        raise ConfigError(
            f"launch.nodes={options.nodes} and launch.gpus_per_node={options.gpus_per_node} give a run "
            f"{options.tasks} processes: choose parallel=ddp, fsdp or hsdp"
        )
    if needs_several and options.tasks == 1:
        raise ConfigError(
            f"parallel={parallel} needs more than one process: set launch.gpus_per_node or launch.nodes above 1"
        )


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides of the launch and those of the runs.

    Raises:
        ConfigError: an override is not for a launcher.
    """
    launch: list[str] = []
    train: list[str] = []
    for text, override in zip(overrides, parse_overrides(overrides), strict=True):
        group = override.key_or_group.partition(".")[0]
        if group == "hydra":
            raise ConfigError(f"{text}: the launcher chooses the run directories, below launch.dir")
        if group == "launch" and override.is_sweep_override():
            raise ConfigError(f"{text}: a sweep is launched one way, so launch takes one value")
        if override.key_or_group == "dry_run":
            raise ConfigError(
                f"{text}: a dry run needs no job; use python -m trainer, or python -m launch --dry-run"
            )
        (launch if group == "launch" else train).append(text)
    return launch, train


def launch_options(args: Namespace, overrides: list[str]) -> LaunchOptions:
    """Composes and checks the options of the launch, which are no part of the runs' configs.

    Raises:
        ConfigError: an option is unknown or has the wrong type or range.
    """
    named = any(override.partition("=")[0] == "launch" for override in overrides)
    group = [f"+{text}" if text.startswith("launch=") else text for text in overrides]
    with hydra_session(args) as hydra:
        config = compose(hydra, args, group if named else ["+launch=slurm", *group])
    unresolved = OmegaConf.to_container(config.launch, resolve=False)
    assert isinstance(unresolved, dict)
    notify = unresolved[
        "notify"
    ]  # its references may stand for secrets, which no file of the sweep shall hold
    values = OmegaConf.to_container(OmegaConf.merge(config, {"launch": {"notify": []}}).launch, resolve=True)
    assert isinstance(values, dict)
    return check_launch({**{str(key): value for key, value in values.items()}, "notify": notify})


def point_names(points: list[list[str]]) -> list[str]:
    """Returns a name for each point: its number, and the overrides that not all points share."""
    common = set.intersection(*map(set, points))
    varied = [",".join(text for text in point if text not in common) for point in points]
    return [f"{number}_{file_name(text)}" for number, text in enumerate(varied)]
