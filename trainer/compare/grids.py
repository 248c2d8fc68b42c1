"""The values among which an option is tuned: ``tune.OPTION=GRID``, or a domain for a search."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.command_line import parse_overrides
from trainer.errors import ConfigError
from trainer.options import is_number

CALL = re.compile(r"(?P<kind>log|lin)\((?P<arguments>.*)\)")

GRID = (
    "log(low,high,n) with 0 < low < high, lin(low,high,n), or a list [a,b,c], of at least two values; "
    "tune.search=tpe takes log(low,high) and lin(low,high)"
)
DOMAIN = "log(low,high) with 0 < low < high, lin(low,high), or a list [a,b,c] of at least two values"


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, which are drawn on a linear or logarithmic scale."""

    kind: Literal["log", "lin"]
    low: float
    high: float

    def rounded(self, value: float) -> float:
        """A value with four digits that lies in the interval."""
        return min(max(rounded(value), self.low), self.high)


Domain = Interval | list[Any]
"""Of an option in a search; a list's values have no order."""


def grid_values(key: str, text: str) -> list[Any]:
    """Returns the values of ``log(low,high,n)``, ``lin(low,high,n)`` or ``[a,b,c]``.

    Those of ``log`` and ``lin``, evenly spaced on their scale, have four digits.

    Args:
        key: for the error message.
        text: after the equals sign.

    Raises:
        ConfigError: the text is none of these, or names fewer than two values.
    """
    if (call := CALL.fullmatch(text.replace(" ", ""))) is None:
        return choices(key, text, GRID)
    interval, rest = read_interval(key, text, call, GRID)
    if len(rest) != 1 or not isinstance(n := rest[0], int) or n < 2:
        raise wrong(key, text, GRID)
    low, high = interval.low, interval.high
    shares = [i / (n - 1) for i in range(n)]
    if interval.kind == "log":
        return [rounded(low * (high / low) ** share) for share in shares]
    return [rounded(low + (high - low) * share) for share in shares]


def search_domain(key: str, text: str) -> Domain:
    """Returns the interval of ``log(low,high)`` or ``lin(low,high)``, or the values of ``[a,b,c]``.

    Args:
        key: for the error message.
        text: after the equals sign.

    Raises:
        ConfigError: the text is none of these, such as a grid.
    """
    if (call := CALL.fullmatch(text.replace(" ", ""))) is None:
        return choices(key, text, DOMAIN)
    interval, rest = read_interval(key, text, call, DOMAIN)
    if rest:
        ends = call["arguments"].rpartition(",")[0]
        raise ConfigError(
            f"{key}={text} is a grid, but tune.search chooses the values itself: write {call['kind']}({ends})"
        )
    return interval


def choices(key: str, text: str, expected: str) -> list[Any]:
    """Returns the values of a list.

    Raises:
        ConfigError: it is none, or has fewer than two different values.
    """
    values = parsed(key, text, expected)
    if len(set(map(repr, values))) < 2:
        raise wrong(key, text, expected)
    return values


def read_interval(key: str, text: str, call: re.Match[str], expected: str) -> tuple[Interval, list[Any]]:
    """Returns the interval that ``log(...)`` or ``lin(...)`` begins with, and the arguments after it.

    Raises:
        ConfigError: it has no ends, or they are none of an interval.
    """
    ends = parsed(key, f"[{call['arguments']}]", expected, text)
    if len(ends) not in (2, 3) or not all(map(is_number, ends)):
        raise wrong(key, text, expected)
    low, high, *rest = ends
    if low >= high or (call["kind"] == "log" and low <= 0):
        raise wrong(key, text, expected)
    return Interval("log" if call["kind"] == "log" else "lin", float(low), float(high)), rest


def parsed(key: str, text: str, expected: str, typed: str | None = None) -> list[Any]:
    """Parses a list in Hydra's grammar, in which 1e-4 is a number.

    Args:
        key: for the error message.
        text: of the list.
        expected: what would be right, for the error message.
        typed: what the user typed; None: the list.

    Raises:
        ConfigError: it is not a list.
    """
    try:
        (override,) = parse_overrides([f"{key}={text}"])
    except ConfigError:
        raise wrong(key, typed or text, expected) from None
    value = None if override.is_sweep_override() else override.value()
    if not isinstance(value, list):
        raise wrong(key, typed or text, expected)
    return value


def rounded(value: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{value:.4g}")


def wrong(key: str, text: str, expected: str) -> ConfigError:
    """Returns the error for text that is not what was expected."""
    return ConfigError(f"{key}={text} is wrong: it must be {expected}")
