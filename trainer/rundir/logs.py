"""The end of a log, and the error in it. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

TAIL = 2**16
"""Bytes, at the end of a log, that are read."""


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The lines among the last of a log that are not blank, without blanks around them; none if it cannot be read.

    Args:
        log: the file.
        start: the byte before which nothing is read.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()]


def last_error(lines: Sequence[str]) -> str | None:
    """The message of the last line in which a command reports an error or a crash; None if there is none."""
    errors = [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "crashed: "))]
    return errors[-1] if errors else None
