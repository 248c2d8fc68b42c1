"""From a command line to configs: Hydra composes them, every mistake becomes one line.

`compose_run` gives the config of one run, `compose_grid` those of all runs of a sweep.
"""

import argparse
import copy
import re
from collections.abc import Iterator, Mapping
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
from omegaconf.errors import OmegaConfBaseException

from trainer._private import BasicSweeper, Hydra, apply_overrides, create_config_search_path
from trainer.config.command_line import first_line, parse_overrides
from trainer.config.schema import REGISTRIES, Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.options import REQUIRED
from trainer.registry import Entry, import_plugin

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The directory of the config groups."""


def file_name(text: str) -> str:
    """Returns text as one name of a file or directory, of at most 120 bytes. Names of different texts may be alike."""
    name = re.sub(r"[^\w.,=+-]+", "-", text)
    return name.encode()[:120].decode(errors="ignore") or "run"


OmegaConf.register_new_resolver("file_name", file_name, replace=True)


@dataclass(frozen=True)
class GridPoint:
    """One run of a sweep: what was typed for it, and the config that this makes."""

    overrides: list[str]
    config: Config


def load_plugins(overrides: list[str]) -> None:
    """Imports the modules named by ``plugins=[...]`` and by entry points.

    A component that they register without a YAML file gets a config from its signature.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for registry in REGISTRIES.values():
        registry.load_entry_points()
    for override in parse_overrides(overrides):
        if override.key_or_group == "plugins" and not override.is_sweep_override():
            modules = override.value()
            for module in modules if isinstance(modules, list) else [modules]:
                import_plugin(str(module))
    store = ConfigStore.instance()
    for group, registry in REGISTRIES.items():
        for entry in registry:
            if not (CONF / group / f"{entry.name}.yaml").exists():
                store.store(name=entry.name, node=_default_config(entry, registry.common), group=group)


def announced_modules() -> list[str]:
    """The modules that entry points name, of all registries."""
    return [module for registry in REGISTRIES.values() for module in registry.announced_modules()]


def _default_config(entry: Entry, common: Mapping[str, Any]) -> dict[str, Any]:
    options = {**common, **entry.options}
    return {"name": entry.name} | {
        name: "???" if option.default is REQUIRED else option.default for name, option in options.items()
    }


@contextmanager
def hydra_session(args: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra with the config directory of this project, or those of the command line.

    Raises:
        ConfigError: ``--config-dir`` is not a directory.
    """
    path = create_config_search_path(args.config_path or str(CONF))
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


def compose_run(args: argparse.Namespace) -> tuple[Config, Path]:
    """Composes the config of the single run that a command line asks for, with its plugins.

    Returns:
        The checked config, and the run directory as Hydra names it.

    Raises:
        ConfigError: as `load_plugins`, `compose` and `resolve`.
    """
    load_plugins(args.overrides)
    with hydra_session(args) as hydra:
        composed = compose(hydra, args, args.overrides)
    return resolve(composed), Path(composed.hydra.run.dir)


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
    return [GridPoint(point, resolve(config)) for point, config in zip(points, composed, strict=True)]


def compose(hydra: Hydra, args: argparse.Namespace, overrides: list[str]) -> DictConfig:
    """Composes the config of one run, Hydra's own node included.

    Raises:
        ConfigError: the overrides cannot be read or do not fit the config.
    """
    try:
        return hydra.compose_config(args.config_name or "config", overrides, RunMode.RUN)
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


def resolve(config: DictConfig) -> Config:
    """Resolves and checks a composed config, whose plugins are imported first.

    Raises:
        ConfigError: as `check_config`; also an interpolation that leads nowhere and a missing value.
    """
    try:
        values = OmegaConf.to_container(without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from None
    assert isinstance(values, dict)
    for module in values.get("plugins") or ():
        import_plugin(str(module))
    return check_config({str(key): value for key, value in values.items()})


def _explain_missing(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if error.options is None or not group:
        return first_line(error)
    return f"unknown option {group}={option}{nearest(option, error.options)}"


def _explain_key(hydra: Hydra, args: argparse.Namespace, overrides: list[str], key: str) -> str:
    """Returns a message that names the options where the unknown key was looked for."""
    others = [
        text
        for text, override in zip(overrides, parse_overrides(overrides), strict=True)
        if override.key_or_group != key
    ]
    parent, _, name = key.rpartition(".")
    config = compose(hydra, args, others)
    known: Any = OmegaConf.select(config, parent) if parent else config
    while parent and not isinstance(known, DictConfig):
        parent, _, name = parent.rpartition(".")
        known = OmegaConf.select(config, parent) if parent else config
    full = f"{parent}.{name}" if parent else name
    names = [str(k) for k in known if k != "name"] if parent else [*map(str, known), "experiment", "quick"]
    return f"unknown option {full}{nearest(name, names)}"
