"""Components by name: models, data, optimizers, schedules, monitor sinks.

A component is a function or class. What the trainer hands it is positional; its keyword-only arguments are
the options a user may set, typed and limited by their annotations::

    @MODELS.register("tiny")
    def tiny(*, num_classes: int, width: Count = 32, dropout: Fraction = 0.0) -> nn.Module: ...
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from trainer.errors import ConfigError, nearest, one_line
from trainer.options import Option, arguments_of, check_options, options_of

Target = TypeVar("Target", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered component: how it is built, the options it takes, and its tags."""

    name: str
    target: Callable[..., Any]
    options: Mapping[str, Option]
    tags: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """Named components of one kind.

    Args:
        kind: the config group, as in ``model=NAME``.
        common: a dataclass; its fields are options of every component of this kind.
        entry_points: the group in which installed packages announce modules that register components.
    """

    def __init__(self, kind: str, *, common: type | None = None, entry_points: str | None = None) -> None:
        self.kind = kind
        self.common = options_of(common) if common else {}
        self.entry_points = entry_points
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, **tags: Any) -> Callable[[Target], Target]:
        """Decorator: adds a function or class under a name.

        Raises:
            ValueError: the name is taken by something else, or an option hides a common one.
        """

        def add(target: Target) -> Target:
            options = arguments_of(target)
            taken = self._entries.get(name)
            if taken is not None and (taken.target.__module__, taken.target.__qualname__) != (
                target.__module__,
                target.__qualname__,
            ):
                raise ValueError(f"{self.kind} {name!r} is registered already, by {taken.target.__module__}")
            if hidden := options.keys() & (self.common.keys() | {"name"}):
                raise ValueError(f"{self.kind} {name!r} may not call an option {', '.join(sorted(hidden))}")
            self._entries[name] = Entry(name, target, options, tags)
            return target

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """The component of that name.

        Raises:
            ConfigError: there is none; the message names the nearest ones and lists all.
        """
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def check(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config group, ``{name: ..., option: value, ...}``, with every option checked and completed.

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
        """Builds the component that a checked config group names, from what is given and its own options."""
        entry = self.get(config["name"])
        return entry.target(*given, **{name: config[name] for name in entry.options})

    def load_entry_points(self) -> None:
        """Imports every module that an installed package announces for this registry."""
        for entry in entry_points(group=self.entry_points) if self.entry_points else ():
            import_plugin(entry.value.split(":")[0])


def import_plugin(module: str) -> None:
    """Imports a user's module, so that it can register components.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # a plugin may fail in any way, and the user must learn which one did
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"plugin {module!r} cannot be imported: {reason}") from error
