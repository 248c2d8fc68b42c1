"""Typed options: one check for the fields of a dataclass and the keyword arguments of a registered component.

An option's type is its annotation: bool, int, float, str, None, Literal, list, tuple, dict, dataclasses and
unions of these. Limits are metadata of ``Annotated``: a `Range`, or any container, whose text says what it holds.
Members of a union that no config file can hold, such as a Tensor, are left out of messages.

A ``_`` at the end of a dataclass's field is not part of the option's name: ``async_`` is the option ``async``, which
is a keyword of Python.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from trainer.errors import ConfigError, nearest

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Range:
    """Limits of a number: at least, greater than, at most, less than; None does not bind."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        limits = {">=": self.ge, ">": self.gt, "<=": self.le, "<": self.lt}
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)


Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Fraction = Annotated[float, Range(ge=0, lt=1)]
"""A decay rate or a probability: 0 <= x < 1."""
Count = Annotated[int, Range(ge=1)]
Natural = Annotated[int, Range(ge=0)]


class MayDiffer:
    """Metadata of an option on which what is learnt does not depend: a run may go on with another value."""


MAY_DIFFER = MayDiffer()
KEYS_MAY_DIFFER = MayDiffer()
"""Of a mapping whose keys say where something is: they may differ, but not its values and their order."""


@dataclass(frozen=True)
class Option:
    """An option: its name, its annotation, and the value where the user gives none."""

    name: str
    type: Any
    default: Any = REQUIRED

    @property
    def may_differ(self) -> bool:
        """Whether a run may go on with another value."""
        return MAY_DIFFER in getattr(self.type, "__metadata__", ())

    def compared(self, value: Any) -> Any:
        """What must be the same of a value where a run goes on."""
        keys_may_differ = KEYS_MAY_DIFFER in getattr(self.type, "__metadata__", ())
        return list(value.values()) if keys_may_differ and isinstance(value, Mapping) else value


def options_of(target: Callable[..., Any] | type) -> dict[str, Option]:
    """Reads the options of a dataclass (its fields) or of any other callable (its keyword-only arguments).

    Returns:
        The options by name, in the order of the signature.
    """
    if typing.get_origin(target) is Annotated:
        target = typing.get_args(target)[0]
    if not dataclasses.is_dataclass(target):
        return keyword_options(target)
    hints = typing.get_type_hints(target, include_extras=True)
    fields = [(_option_name(f.name), hints[f.name], _field_default(f)) for f in dataclasses.fields(target)]
    return {name: Option(name, type_, default) for name, type_, default in fields}


def keyword_options(target: Callable[..., Any]) -> dict[str, Option]:
    """Reads the keyword-only arguments of a function or class, by name: of a component they are its options."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        p.name: Option(p.name, hints.get(p.name, Any), p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def build_dataclass(target: type, checked: Mapping[str, Any]) -> Any:
    """Builds a dataclass from checked options, of which it takes those that are its fields."""
    return target(**{f.name: checked[_option_name(f.name)] for f in dataclasses.fields(target)})


def to_dict(options: Any) -> dict[str, Any]:
    """Returns a dataclass of options, and those within it, as plain mappings."""
    return dataclasses.asdict(options, dict_factory=lambda items: {_option_name(k): v for k, v in items})


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by their dotted names: ``{"a": {"b": 1}}`` gives ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def is_number(value: Any) -> bool:
    """Whether an option's value is an integer or a float; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _option_name(argument: str) -> str:
    return argument.removesuffix("_")


def _field_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def check_options(options: Mapping[str, Option], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks the values of all options.

    Args:
        options: those that exist.
        values: those that the user gave.
        where: the prefix of their names in messages, such as ``optimizer``.

    Returns:
        The values, converted to their types and completed with the defaults, in the order of the options.

    Raises:
        ConfigError: a key is unknown, a required one is missing, or a value has the wrong type or range.
    """
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in options:
            raise ConfigError(f"unknown option {prefix}{key}{nearest(str(key), options)}")
    checked = {}
    for name, option in options.items():
        value = values.get(name, option.default)
        if value is REQUIRED:
            raise ConfigError(f"{prefix}{name} is required: {describe(option.type)}")
        checked[name] = check_value(option.type, value, f"{prefix}{name}") if name in values else value
    return checked


def check_value(type_: Any, value: Any, where: str) -> Any:
    """Converts a value to its type: an int to a float, a list to a tuple, where the type asks for it.

    Raises:
        ConfigError: the value has the wrong type or is out of range.
    """
    try:
        return _convert(type_, value, where)
    except (TypeError, ValueError, OverflowError):  # the last one of an integer that no float can hold
        finite = ", and finite" if isinstance(value, float) and math.isinf(value) else ""
        raise ConfigError(f"{where}={_show(value)} is wrong: it must be {describe(type_)}{finite}") from None


def _convert(type_: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if type_ is Any:
        return value
    if origin is Annotated:
        converted = _convert(args[0], value, where)
        if converted is not None and any(converted not in limits for limits in _limits(args)):
            raise ValueError
        return converted
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(
            value is a for a in args if isinstance(a, bool)
        ):
            raise ValueError
        return value
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        if not isinstance(value, Mapping):
            raise TypeError
        return build_dataclass(type_, check_options(options_of(type_), value, where))
    if origin in (list, tuple):
        return origin(_convert_items(origin, args, value, where))
    if origin is dict or type_ is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    if type_ is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type_ in (None, type(None)):
        if value is not None:
            raise TypeError
        return None
    if not isinstance(value, type_) or (isinstance(value, bool) and type_ is not bool):
        raise TypeError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    return value


def _limits(annotated: tuple[Any, ...]) -> list[Container[Any]]:
    """The metadata that limits values; text, which is a container too, is a comment."""
    return [m for m in annotated[1:] if isinstance(m, Container) and not isinstance(m, str)]


def _convert_items(origin: type, members: tuple[Any, ...], value: Any, where: str) -> typing.Iterator[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError
    if origin is list or members[-1] is Ellipsis:
        members = members[:1] * len(value)
    if len(members) != len(value):
        raise ValueError
    for i, (member, item) in enumerate(zip(members, value, strict=True)):
        yield _convert(member, item, f"{where}[{i}]")


def _convert_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    for member in members:
        try:
            return _convert(member, value, where)
        except (TypeError, ValueError):
            continue
    raise TypeError


def _show(value: Any) -> str:
    return str(value) if value is not None else "null"


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


def describe(type_: Any) -> str:
    """Returns an annotation in words a user knows: ``a number >= 0 or null``."""
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is Annotated:
        limits = " and ".join(map(str, _limits(args)))
        return f"{describe(args[0])} {limits}".strip()
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args if _is_plain(a))
    if origin is Literal:
        return "one of " + ", ".join(_show(a) for a in args)
    if origin in (list, tuple):
        return f"a list, each {describe(args[0])}"
    if origin is dict or type_ is dict or dataclasses.is_dataclass(type_):
        return "a mapping"
    return _NAMES.get(type_, getattr(type_, "__name__", str(type_)))


def _is_plain(type_: Any) -> bool:
    """Whether a config file can hold values of a type."""
    return not isinstance(type_, type) or type_ in (*_NAMES, dict) or dataclasses.is_dataclass(type_)
