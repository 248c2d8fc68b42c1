"""Numbers as a person reads them: one format for each kind, in every command."""


def number(value: float) -> str:
    """``0.1235``, ``0.000123``, ``1.23e+04``: four decimals, or three digits of very small and of large numbers.

    An int is written in full.
    """
    if isinstance(value, int):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2,000 runs``: of nouns whose plural ends in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def percent(share: float) -> str:
    """``97.22%`` for 0.9722."""
    return f"{100 * share:.2f}%"


def clock_time(seconds: float) -> str:
    """``0:07``, ``12:34``, ``1:02:03``, ``2d 03:04``: to the second, or to the minute from a day on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def duration(seconds: float) -> str:
    """``0.8 ms``, ``2.35 s``, then as `clock_time`: three digits, for what may be short."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return clock_time(seconds)


def memory(mib: float) -> str:
    """``34 KiB``, ``412 MiB``, ``2.0 GiB``, from mebibytes."""
    if mib < 1:
        return f"{1024 * mib:.0f} KiB"
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def printable(text: str) -> str:
    """Text that anybody may have written, for a terminal: control characters and broken ones in hexadecimal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
