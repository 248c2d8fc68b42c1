"""A sink that fails does not end the run that reports to it."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from trainer.errors import one_line

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


def silence_broken_streams() -> None:
    """Sends standard output and errors to nowhere where nobody reads them: Python would fail once more at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        except ValueError:  # closed
            pass
