"""Components by name: models, data, objectives, optimizers, schedules, strategies, monitor sinks.

A component is a function or class. What the trainer hands it is positional; its keyword-only arguments are
the options a user may set, typed and limited by their annotations::

    @MODELS.register("tiny")
    def tiny(*, num_classes: int, width: Count = 32, dropout: Fraction = 0.0) -> nn.Module: ...

The packages of components import all their modules by `import_submodules`: a new file is a new component.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from trainer.errors import ConfigError, build_error, nearest, one_line, one_line_errors
from trainer.options import Option, check_options, keyword_options, options_of

Target = TypeVar("Target", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered component."""

    name: str
    target: Any
    """The function or class that builds it."""
    options: Mapping[str, Option]
    """Its own, by name; those that are common to all of its kind are not among them."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What its kind wants to know of it, such as the objective of a model."""


class Registry:
    """Named components of one kind.

    Args:
        kind: the config group, as in ``model=NAME``.
        common: a dataclass; its fields are options of every component of this kind.
        entry_points: the group in which installed packages announce modules that register components.
        refusals: what components raise for options that exclude each other, as torch's optimizers a ValueError;
            `build` makes a ConfigError of it.
        explains: whatever else a component raises is its own fault, and `build` makes a BuildError of it; false for
            those that use the network or write to the disk.
    """

    def __init__(
        self,
        kind: str,
        *,
        common: type | None = None,
        entry_points: str | None = None,
        refusals: tuple[type[Exception], ...] = (),
        explains: bool = True,
    ) -> None:
        self.kind = kind
        self.common = options_of(common) if common else {}
        self.entry_points = entry_points
        self.refusals = refusals
        self.explains = explains
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, **tags: Any) -> Callable[[Target], Target]:
        """Decorator: adds a function or class under a name, its keyword-only arguments as options.

        Raises:
            ValueError: as `add`.
        """

        def decorate(target: Target) -> Target:
            self.add(name, target, keyword_options(target), **tags)
            return target

        return decorate

    def add(self, name: str, target: Callable[..., Any], options: Mapping[str, Option], **tags: Any) -> None:
        """Adds a function or class under a name, with options that its signature does not tell.

        Raises:
            ValueError: the name is taken by something else, or an option hides a common one.
        """
        taken = self._entries.get(name)
        if taken is not None and (taken.target.__module__, taken.target.__qualname__) != (
            target.__module__,
            target.__qualname__,
        ):
            raise ValueError(f"{self.kind} {name!r} is registered already, by {taken.target.__module__}")
        if hidden := options.keys() & (self.common.keys() | {"name"}):
            raise ValueError(f"{self.kind} {name!r} may not call an option {', '.join(sorted(hidden))}")
        self._entries[name] = Entry(name, target, options, tags)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """Returns the component of that name.

        Raises:
            ConfigError: there is none; the message names the nearest ones and lists all.
        """
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Checks a config group, ``{name: ..., option: value, ...}``.

        Returns:
            The same with every option converted to its type, those left out with their defaults.

        Raises:
            ConfigError: the name or an option is unknown, or a value is of the wrong type or out of range.
        """
        values = dict(config)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{self.kind}.name is missing{nearest('', self._entries)}")
        entry = self.get(name)
        return {"name": name, **check_options({**self.common, **entry.options}, values, self.kind)}

    def build(self, config: Mapping[str, Any], *given: Any) -> Any:
        """Builds the component that a checked config group names, from what is given and its own options.

        Raises:
            ConfigError: the component refuses its options, or what is given.
            BuildError: it fails in another way.
        """
        entry = self.get(config["name"])
        what = f"{self.kind}={entry.name} cannot be built"
        with one_line_errors(what, entry.target.__module__) if self.explains else nullcontext():
            try:
                return entry.target(*given, **{name: config[name] for name in entry.options})
            except self.refusals as error:
                raise ConfigError(f"{self.kind}={entry.name}: {one_line(error)}") from error

    def load_entry_points(self) -> None:
        """Imports every module that an installed package announces for this registry."""
        for module in self.announced_modules():
            import_plugin(module)

    def announced_modules(self) -> list[str]:
        """The modules that installed packages announce for this registry, by name."""
        found = entry_points(group=self.entry_points) if self.entry_points else ()
        return [entry.value.split(":")[0] for entry in found]


def import_submodules(package: str) -> None:
    """Imports every module of a package that is being imported but ``__main__``: each can register components."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__, f"{package}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


def import_plugin(module: str) -> None:
    """Imports a user's module, so that it can register components.

    Raises:
        BuildError: it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # a plugin may fail in any way, and the user must learn which one did
        raise build_error(f"plugin {module!r} cannot be imported", error, module) from error
