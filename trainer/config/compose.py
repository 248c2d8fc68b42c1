"""From a command line to configs: Hydra composes them, every mistake becomes one line."""

import argparse
import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.schema import REGISTRIES, Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.options import REQUIRED
from trainer.registry import Entry, import_plugin

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The directory of the config groups."""


def file_name(text: str) -> str:
    """Text as one name of a file or directory, for the subdirectories of a sweep."""
    return re.sub(r"[^\w.,=+-]+", "-", text)[:120] or "run"


OmegaConf.register_new_resolver("file_name", file_name, replace=True)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Hydra's own command line: overrides and ``--multirun``, ``--cfg``, ``--config-dir`` and so on.

    Raises:
        ConfigError: a flag is unknown or lacks its value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(
            f"{message} (flags: --help --hydra-help --cfg --multirun --config-dir --config-path)"
        )

    parser.error = refuse  # type: ignore[method-assign]
    args = parser.parse_args(argv)
    args.overrides = join_dry_run(args.overrides)
    if args.config_path:
        args.config_path = str(Path(args.config_path).resolve())
        if not Path(args.config_path, f"{args.config_name or 'config'}.yaml").is_file():
            raise ConfigError(
                f"{args.config_path} has no {args.config_name or 'config'}.yaml: give a run directory"
            )
    return args


def join_dry_run(overrides: list[str]) -> list[str]:
    """``dry_run.world_size=64`` as a value of ``dry_run``, in whose place ``true`` may stand too."""
    options = [
        o.removeprefix("dry_run.").replace("=", ": ", 1) for o in overrides if o.startswith("dry_run.")
    ]
    if not options:
        return overrides
    others = [o for o in overrides if not o.startswith(("dry_run.", "dry_run="))]
    return [*others, f"dry_run={{{', '.join(options)}}}"]


def load_plugins(overrides: list[str]) -> None:
    """Imports the modules named by ``plugins=[...]`` and by entry points, then lists what they registered.

    A component whose author wrote no YAML file gets a config from its signature.
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


def _default_config(entry: Entry, common: Mapping[str, Any]) -> dict[str, Any]:
    options = {**common, **entry.options}
    return {"name": entry.name} | {
        name: "???" if option.default is REQUIRED else option.default for name, option in options.items()
    }


@contextmanager
def hydra_session(args: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra with the project's config directory, or the ones that the command line names."""
    path = create_config_search_path(args.config_path or str(CONF))
    if args.config_dir:
        if not Path(args.config_dir).is_dir():
            raise ConfigError(f"--config-dir {args.config_dir} is no directory")
        anchor = SearchPathQuery(provider="schema")
        path.prepend("command-line", f"file://{Path(args.config_dir).resolve()}", anchor=anchor)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="trainer", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def compose(hydra: Hydra, args: argparse.Namespace, overrides: list[str]) -> DictConfig:
    """The config of one run, Hydra's own node included.

    Raises:
        ConfigError: the overrides cannot be read or do not fit the config.
    """
    try:
        return hydra.compose_config(args.config_name or "config", overrides, RunMode.RUN)
    except MissingConfigException as error:
        raise ConfigError(_explain_missing(error)) from None
    except ConfigCompositionException as error:
        if str(error).startswith("Ambiguous value"):
            raise ConfigError(f"{_first_line(error)}: quote it, or add --multirun to run each") from None
        key = re.match(
            r"Could not (?:override|append to config|delete from config)[. ]*'([^']+)'", str(error)
        )
        if key:
            raise ConfigError(_explain_key(hydra, args, overrides, key[1])) from None
        raise ConfigError(_first_line(error)) from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(_first_line(error)) from None


def compose_points(hydra: Hydra, args: argparse.Namespace, points: list[list[str]]) -> list[DictConfig]:
    """The configs of many points, without Hydra's own node; those that differ only in values are composed once.

    Raises:
        ConfigError: as `compose`.
    """
    loader = hydra.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    bases: dict[tuple[str, ...], DictConfig] = {}
    composed = []
    for point in points:
        groups, values = [], []
        for text, override in zip(point, parse_overrides(point), strict=True):
            plain = override.type is OverrideType.CHANGE
            if plain and not loader.repository.group_exists(override.key_or_group):
                values.append(override)
            else:
                groups.append(text)
        try:
            if tuple(groups) not in bases:
                bases[tuple(groups)] = without_hydra(compose(hydra, args, groups))
            config = copy.deepcopy(bases[tuple(groups)])
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except (ConfigError, HydraException, OmegaConfBaseException):
            config = without_hydra(compose(hydra, args, point))  # says what is wrong
        composed.append(config)
    return composed


def without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def resolve(config: DictConfig) -> Config:
    """The typed, checked config of a composed one.

    Raises:
        ConfigError: as `check_config`; also an interpolation that leads nowhere and a missing value.
    """
    try:
        values = OmegaConf.to_container(without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    assert isinstance(values, dict)
    for module in values.get("plugins") or ():
        import_plugin(str(module))
    return check_config({str(key): value for key, value in values.items()})


def sweep_points(overrides: list[str]) -> list[list[str]]:
    """The overrides of every run of a grid, in the order in which Hydra's basic sweeper runs them."""
    return BasicSweeper.split_arguments(parse_overrides(overrides), max_batch_size=None)[0]


def parse_overrides(overrides: list[str]) -> list[Any]:
    """Hydra's own objects of them.

    Raises:
        ConfigError: one cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ConfigError(f"cannot read {error.override!r}: {_first_line(error)}; write key=value") from None


def _explain_missing(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if error.options is None or not group:
        return _first_line(error)
    return f"unknown option {group}={option}{nearest(option, error.options)}"


def _explain_key(hydra: Hydra, args: argparse.Namespace, overrides: list[str], key: str) -> str:
    """Names what stands where the unknown key was looked for."""
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
    names = [str(k) for k in known if k != "name"] if parent else [*map(str, known), "experiment"]
    return f"unknown option {full}{nearest(name, names)}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
