"""A sink that fails does not end the run that reports to it."""

from collections.abc import Callable
from typing import Any, TypeVar

from trainer.errors import one_line
from trainer.streams import silence_broken_streams

T = TypeVar("T")


class Guard:
    """Calls sinks, and turns what they raise into a warning: one for each, at its first failure.

    Args:
        warn: called with text and level; what it calls may be guarded itself.
    """

    def __init__(self, warn: Callable[[str, Any], None]) -> None:
        self.warn = warn
        self.failed: set[str] = set()

    def __call__(self, name: str, call: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """Returns what a sink's method returns, or None if it raises."""
        try:
            return call(*args, **options)
        except Exception as error:
            silence_broken_streams()
            if name not in self.failed:
                self.failed.add(name)
                cause = f"{type(error).__name__}: {one_line(error)}"
                self.warn(
                    f"monitor.sinks: {name} fails, and may lack records from here on: {cause}", "warning"
                )
            return None
