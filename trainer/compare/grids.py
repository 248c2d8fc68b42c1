"""The grid of values on which an option is tuned: ``tune.OPTION=GRID``."""

import re
from typing import Any

from trainer.config.command_line import parse_overrides
from trainer.errors import ConfigError
from trainer.options import is_number

CALL = re.compile(r"(?P<kind>log|lin)\((?P<arguments>.*)\)")


def grid_values(key: str, text: str) -> list[Any]:
    """Returns the values of ``log(low,high,n)``, ``lin(low,high,n)`` or ``[a,b,c]``.

    Those of ``log`` and ``lin``, evenly spaced on their scale, have four digits.

    Args:
        key: for the error message.

    Raises:
        ConfigError: the text is none of these, or names fewer than two values.
    """
    call = CALL.fullmatch(text.replace(" ", ""))
    if call is None:
        values = parsed(key, text)
        if len(set(map(repr, values))) < 2:
            raise wrong(key, text)
        return values
    ends = parsed(key, f"[{call['arguments']}]")
    if len(ends) != 3 or not all(map(is_number, ends)):
        raise wrong(key, text)
    low, high, n = ends
    if not isinstance(n, int) or n < 2 or low >= high or (call["kind"] == "log" and low <= 0):
        raise wrong(key, text)
    shares = [i / (n - 1) for i in range(n)]
    if call["kind"] == "log":
        return [rounded(low * (high / low) ** share) for share in shares]
    return [rounded(low + (high - low) * share) for share in shares]


def parsed(key: str, text: str) -> list[Any]:
    """Parses a list in Hydra's grammar, in which 1e-4 is a number.

    Raises:
        ConfigError: it is not a list.
    """
    try:
        (override,) = parse_overrides([f"{key}={text}"])
    except ConfigError:
        raise wrong(key, text) from None
    value = None if override.is_sweep_override() else override.value()
    if not isinstance(value, list):
        raise wrong(key, text)
    return value


def rounded(value: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{value:.4g}")


def wrong(key: str, text: str) -> ConfigError:
    """Returns the error for text that is not a grid."""
    return ConfigError(
        f"{key}={text} is wrong: it must be log(low,high,n) with 0 < low < high, lin(low,high,n), or a list "
        f"[a,b,c], of at least two values"
    )
