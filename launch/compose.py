"""From a command line to the runs of a sweep, each composed and checked, before anything is made."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launch.options import LaunchOptions, check_launch
from trainer.config.compose import (
    compose,
    compose_points,
    file_name,
    hydra_session,
    load_plugins,
    parse_arguments,
    parse_overrides,
    resolve,
    sweep_points,
)
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.options import to_dict
from trainer.rundir.frozen_config import freeze


@dataclass(frozen=True)
class GridPoint:
    """One run of a grid."""

    name: str
    """Its number and what tells it from the others, fit for a directory."""
    overrides: list[str]
    config: Config

    def freeze(self, directory: Path) -> None:
        """Writes what the run will read."""
        freeze(directory, to_dict(self.config), self.overrides)


def compose_sweep(arguments: list[str]) -> tuple[LaunchOptions, list[GridPoint]]:
    """The options of the launch and every point of the grid.

    Raises:
        UserError: an option or a point is wrong.
    """
    args = parse_arguments(arguments)
    for flag in ("config_path", "config_name", "cfg", "info", "resolve", "shell_completion"):
        if getattr(args, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')} is for python -m trainer, not for python -m launch"
            )
    launch, train = split(args.overrides)
    load_plugins(train)
    with hydra_session(args) as session:
        options = launch_options(session, args, launch)
        points = sweep_points(train)
        composed = compose_points(session, args, points)
    configs = [resolve(config) for config in composed]
    for config in configs:
        check_tasks(options, config)
    names = point_names(points)
    return options, [GridPoint(*parts) for parts in zip(names, points, configs, strict=True)]


def check_tasks(options: LaunchOptions, config: Config) -> None:
    """Whether a run has use for as many processes as it is given.

    Raises:
        ConfigError: it has not.
    """
    parallel = config.parallel["name"]
    if parallel == "none" and options.tasks > 1:
        raise ConfigError(
            f"launch.nodes={options.nodes} and launch.gpus_per_node={options.gpus_per_node} give a run "
            f"{options.tasks} processes: choose parallel=ddp, fsdp or hsdp"
        )
    if parallel != "none" and options.tasks == 1:
        raise ConfigError(
            f"parallel={parallel} needs more than one process: set launch.gpus_per_node or launch.nodes above 1"
        )


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """The overrides of the launch and those of the runs."""
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


def launch_options(session: Any, args: Namespace, overrides: list[str]) -> LaunchOptions:
    """The checked options; the runs' own config knows nothing of them."""
    named = any(override.partition("=")[0] == "launch" for override in overrides)
    group = [f"+{text}" if text.startswith("launch=") else text for text in overrides]
    config = compose(session, args, [*group] if named else ["+launch=slurm", *group])
    values = OmegaConf.to_container(config.launch, resolve=True)
    assert isinstance(values, dict)
    return check_launch({str(key): value for key, value in values.items()})


def point_names(points: list[list[str]]) -> list[str]:
    """A number and the overrides that not all points share."""
    common = set.intersection(*map(set, points))
    varied = [",".join(text for text in point if text not in common) for point in points]
    return [f"{number}_{file_name(text)}" for number, text in enumerate(varied)]
