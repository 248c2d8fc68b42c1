"""Modules of the user's that register components, and the configs of those components that have no YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from trainer.config.command_line import CONF, parse_overrides
from trainer.config.schema import COMPONENTS, EXTENSIBLE, REGISTRIES
from trainer.errors import ConfigError
from trainer.options import REQUIRED, Option
from trainer.registry import import_plugin


def load_plugins(overrides: list[str]) -> None:
    """Imports the modules named by ``plugins=[...]`` and by entry points.

    A component that they register without a YAML file gets a config from its signature.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for registry in EXTENSIBLE:
        registry.load_entry_points()
    for module in named_plugins(overrides):
        import_plugin(module)
    store = ConfigStore.instance()
    for group, registry in COMPONENTS.items():
        for entry in registry:
            if not (CONF / group / f"{entry.name}.yaml").exists():
                node = _default_config({**registry.common, **entry.options})
                if group in REGISTRIES:
                    store.store(name=entry.name, node={"name": entry.name, **node}, group=group)
                else:
                    store.store(name=entry.name, node=node, group=group, package=f"{group}.{entry.name}")


def announced_modules() -> list[str]:
    """The modules that entry points name, of all registries."""
    return [module for registry in EXTENSIBLE for module in registry.announced_modules()]


def named_plugins(overrides: list[str]) -> list[str]:
    """The modules that ``plugins=[...]`` names on a command line.

    Raises:
        ConfigError: an override cannot be read.
    """
    named = []
    for override in parse_overrides(overrides):
        if override.key_or_group == "plugins" and not override.is_sweep_override():
            modules = override.value()
            named += modules if isinstance(modules, list) else [modules]
    return list(map(str, named))


def _default_config(options: Mapping[str, Option]) -> dict[str, Any]:
    return {name: "???" if option.default is REQUIRED else option.default for name, option in options.items()}


def refuse_unnamed(plugins: list[str], named: list[str], run: Path, option: str) -> None:
    """Refuses a frozen config whose plugins the command does not name: it may be somebody else's.

    Args:
        plugins: of the config.
        named: those of the command.
        run: the directory of the config.
        option: how the command names plugins.

    Raises:
        ConfigError: one is not named.
    """
    if set(plugins) - set(named):
        raise ConfigError(
            f"the run in {run} needs plugins, whose code would be executed: if you trust them, add "
            f"{option.format(','.join(plugins))}"
        )
