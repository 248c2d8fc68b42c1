"""Limits of options, written once: in the signature that takes them, as ``Annotated[float, Interval(gt=0)]``."""

import numbers
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Interval:
    """The numbers that are at least ``ge``, more than ``gt`` and less than ``lt``; a limit of None does not bind."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    integer: bool = False

    @property
    def kind(self) -> str:
        """What it is of."""
        return "an integer" if self.integer else "a number"

    def is_kind(self, value: Any) -> bool:
        """Whether a value is a number, or an integer."""
        kind = numbers.Integral if self.integer else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)

    def __contains__(self, value: Any) -> bool:
        return bool(
            self.is_kind(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        limits = {">=": self.ge, ">": self.gt, "<": self.lt}
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)


NonNegative = Annotated[float, Interval(ge=0)]
Positive = Annotated[float, Interval(gt=0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Interval(ge=1, integer=True)]


class Choices(tuple[Any, ...]):
    """The values of a Literal."""

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self))


@cache
def limits_of(function: Callable[..., Any]) -> Mapping[str, Container[Any]]:
    """The limits of a function's arguments, by name: intervals of those annotated with one, choices of literals."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: limit for name, hint in hints.items() if (limit := _limit(hint)) is not None}


def _limit(hint: Any) -> Container[Any] | None:
    options = (hint,) if typing.get_origin(hint) in (Annotated, Literal) else typing.get_args(hint)
    for option in options:
        if typing.get_origin(option) is Annotated:
            return option.__metadata__[0]
        if typing.get_origin(option) is Literal:
            others = [(True, False)] * (bool in options) + [(None,)] * (type(None) in options)
            return Choices((*typing.get_args(option), *(value for values in others for value in values)))
    return None


def check(function: Callable[..., Any], **values: Any) -> None:
    """Checks arguments against the limits in the function's signature.

    Raises:
        ValueError: a value is outside of its limits, or no number.
    """
    for name, value in values.items():
        limit = limits_of(function)[name]
        if value not in limit:
            kind = f"{limit.kind} " if isinstance(limit, Interval) and not limit.is_kind(value) else ""
            raise ValueError(f"Invalid {name}: {value!r}, must be {kind}{limit}")
