"""From a command line to configs: Hydra composes them, every mistake becomes one line.

`compose_run` gives the config of one run, `compose_grid` those of all runs of a sweep.
"""

import argparse
import copy
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trainer._private import BasicSweeper, Hydra, apply_overrides, create_config_search_path
from trainer.config.command_line import CONF, first_line, parse_overrides
from trainer.config.plugins import load_plugins, named_plugins, refuse_unnamed
from trainer.config.schema import COMPONENTS, Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.registry import import_plugin
from trainer.rundir.frozen_config import escaped, read_frozen

FROZEN = "frozen config"
"""The name that a run's own config has for Hydra."""

OFTEN_EMPTY = ("callbacks", "experiment", "quick")
"""Config groups that are no key of a config in which nothing is chosen of them."""

LONGEST = 120
"""Bytes of a name that is made of text; file systems take 255."""


def file_name(text: str) -> str:
    """Returns text as one name of a file or directory; a long one ends with a hash in place of what is cut off."""
    name = re.sub(r"[^\w.,=+-]+", "-", text) or "run"
    if len(name.encode()) <= LONGEST:
        return name
    kept = name.encode()[: LONGEST - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("file_name", file_name, replace=True)


@dataclass(frozen=True)
class GridPoint:
    """One run of a sweep: what was typed for it, and the config that this makes."""

    overrides: list[str]
    config: Config


@contextmanager
def hydra_session(args: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra with the config directory of this project, or the frozen config of ``--config-path``.

    Raises:
        ConfigError: ``--config-dir`` is not a directory.
        DataError: the frozen config cannot be read.
    """
    if args.config_path:
        store_frozen(args)
    path = create_config_search_path(None if args.config_path else str(CONF))
    if args.config_dir:
        if not Path(args.config_dir).is_dir():
            raise ConfigError(f"--config-dir {args.config_dir} is not a directory")
        anchor = SearchPathQuery(provider="schema")
        path.prepend("command-line", f"file://{Path(args.config_dir).resolve()}", anchor=anchor)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="trainer", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def config_name(args: argparse.Namespace) -> str:
    """The name by which Hydra finds the config of a command line."""
    return FROZEN if args.config_path else args.config_name or "config"


def store_frozen(args: argparse.Namespace) -> None:
    """Gives Hydra the frozen config of ``--config-path``: values alone, neither interpolations nor options of Hydra's.

    Raises:
        DataError: it cannot be read.
    """
    values = read_frozen(Path(args.config_path, f"{args.config_name or 'config'}.yaml"))
    quiet = [{f"override hydra/{name}": "disabled"} for name in ("hydra_logging", "job_logging")]
    node = {"defaults": ["_self_", *quiet], **escaped(values), "hydra": {"output_subdir": None}}
    ConfigStore.instance().store(name=FROZEN, node=node)


def compose_run(args: argparse.Namespace) -> tuple[Config, Path]:
    """Composes the config of the single run that a command line asks for, with its plugins.

    Returns:
        The checked config, and the run directory: that of ``--config-path``, or as Hydra names it.

    Raises:
        ConfigError: as `load_plugins`, `compose` and `resolve`.
    """
    load_plugins(args.overrides)
    with hydra_session(args) as hydra:
        composed = compose(hydra, args, args.overrides)
    own = args.config_path and not names_run_directory(args.overrides)  # a run is where its directory is
    return resolve(composed, args), Path(args.config_path if own else composed.hydra.run.dir)


def names_run_directory(overrides: list[str]) -> bool:
    """Whether a command line says where the run is, in any of Hydra's ways to write it."""
    return any(override.key_or_group == "hydra.run.dir" for override in parse_overrides(overrides))


def compose_grid(args: argparse.Namespace, overrides: list[str]) -> list[GridPoint]:
    """Composes and checks the config of every run of a grid, in the order in which Hydra's sweeper runs them.

    Args:
        args: the command line, for its flags.
        overrides: those of the runs, swept ones and plugins among them.

    Raises:
        ConfigError: as `load_plugins`, `compose` and `resolve`, for any of the points.
    """
    load_plugins(overrides)
    points = BasicSweeper.split_arguments(parse_overrides(overrides), max_batch_size=None)[0]
    with hydra_session(args) as hydra:
        composed = compose_points(hydra, args, points)
    return [GridPoint(point, resolve(config, args)) for point, config in zip(points, composed, strict=True)]


def compose(hydra: Hydra, args: argparse.Namespace, overrides: list[str]) -> DictConfig:
    """Composes the config of one run, Hydra's own node included.

    Raises:
        ConfigError: the overrides cannot be read or do not fit the config.
    """
    try:
        return hydra.compose_config(config_name(args), overrides, RunMode.RUN)
    except MissingConfigException as error:
        raise ConfigError(_explain_missing(error)) from None
    except ConfigCompositionException as error:
        if str(error).startswith("Ambiguous value"):
            raise ConfigError(f"{first_line(error)}: quote it, or add --multirun to run each") from None
        key = re.match(
            r"Could not (?:override|append to config|delete from config)[. ]*'([^']+)'", str(error)
        )
        if key:
            raise ConfigError(_explain_key(hydra, args, overrides, key[1])) from None
        raise ConfigError(first_line(error)) from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(first_line(error)) from None


def compose_points(hydra: Hydra, args: argparse.Namespace, points: list[list[str]]) -> list[DictConfig]:
    """Composes the configs of many points, without Hydra's own node; those that differ only in values, once.

    Raises:
        ConfigError: as `compose`.
    """
    groups_of_conf = hydra.config_loader.repository
    bases: dict[tuple[str, ...], DictConfig] = {}
    composed = []
    for point in points:
        groups, values = [], []
        for text, override in zip(point, parse_overrides(point), strict=True):
            plain = override.type is OverrideType.CHANGE
            if plain and not groups_of_conf.group_exists(override.key_or_group):
                values.append(override)
            else:
                groups.append(text)
        try:
            if tuple(groups) not in bases:
                bases[tuple(groups)] = without_hydra(compose(hydra, args, groups))
            config = copy.deepcopy(bases[tuple(groups)])
            apply_overrides(values, config)
        except (ConfigError, HydraException, OmegaConfBaseException):
            config = without_hydra(compose(hydra, args, point))  # says what is wrong
        composed.append(config)
    return composed


def without_hydra(config: DictConfig) -> DictConfig:
    """Returns a composed config without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def resolve(config: DictConfig, args: argparse.Namespace | None = None) -> Config:
    """Resolves and checks a composed config, whose plugins are imported first.

    Args:
        config: as `compose` returns it.
        args: the command line; those of a frozen config are imported only if they are named there.

    Raises:
        ConfigError: as `check_config`; also an interpolation that leads nowhere and a missing value.
    """
    try:
        values = OmegaConf.to_container(without_hydra(config), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is required: set {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from None
    assert isinstance(values, dict)
    plugins = list(map(str, values.get("plugins") or ()))
    if args is not None and args.config_path:
        refuse_unnamed(plugins, named_plugins(args.overrides), Path(args.config_path), "plugins=[{}]")
    for module in plugins:
        import_plugin(module)
    return check_config({str(key): value for key, value in values.items()})


def _explain_missing(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    known = error.options
    if (
        known is None and group in COMPONENTS
    ):  # of a group of which several are chosen Hydra does not say them
        known = COMPONENTS[group].names()
    if known is None or not group:
        return first_line(error)
    return f"unknown option {group}={option}{nearest(option, known)}"


def _explain_key(hydra: Hydra, args: argparse.Namespace, overrides: list[str], key: str) -> str:
    """Returns a message that names the options where the unknown key was looked for."""
    others = [
        text
        for text, override in zip(overrides, parse_overrides(overrides), strict=True)
        if override.key_or_group != key
    ]
    parent, _, name = key.rpartition(".")
    config = compose(hydra, args, others)
    group, component, *_ = [*key.split("."), ""]
    if group in COMPONENTS and group not in config and component in COMPONENTS[group]:
        return f"unknown option {key}: {component} is not chosen, add {group}=[{component}]"
    known: Any = OmegaConf.select(config, parent) if parent else config
    while parent and not isinstance(known, DictConfig):
        parent, _, name = parent.rpartition(".")
        known = OmegaConf.select(config, parent) if parent else config
    full = f"{parent}.{name}" if parent else name
    names = [str(k) for k in known if k != "name"] if parent else [*map(str, known), *OFTEN_EMPTY]
    return f"unknown option {full}{nearest(name, names)}"
