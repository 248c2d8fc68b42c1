"""Metrics by their names: which way is better, and their numbers as a person reads them."""

import math
from collections.abc import Sequence


def higher_is_better(metric: str) -> bool:
    """Whether a metric's best value is its largest: that of an accuracy is, of a loss or a perplexity not."""
    return "accuracy" in metric


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value of a metric beats the best so far, None if there is none; nan never does, a tie neither."""
    if math.isnan(value) or best is None:
        return not math.isnan(value)
    return value > best if higher_is_better(metric) else value < best


def value(name: str, number: float) -> str:
    """A metric: an accuracy in percent, a rate with three digits, anything else with four decimals."""
    if "accuracy" in name:
        return f"{100 * number:.2f}%"
    if isinstance(number, int):
        return str(number)
    if name != "lr" and (number == 0 or 1e-3 <= abs(number) < 1e3):
        return f"{number:.4f}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """``0:07``, ``12:34``, ``1:02:03``, ``2d 03:04``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def row(heads: Sequence[str], cells: Sequence[str]) -> str:
    """Cells right-aligned below their heads."""
    return "  ".join(f"{cell:>{max(len(head), 8)}}" for head, cell in zip(heads, cells, strict=True))
