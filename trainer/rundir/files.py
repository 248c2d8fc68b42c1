"""The files of a run directory by name, and how they are written."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import DataError

CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
STATUS = "status.json"
METRICS = "metrics.jsonl"

FORMAT = 1
"""Of the files that hold a "format"; it changes with their meaning."""


def check_format(record: Mapping[str, Any], path: Path) -> None:
    """Refuses a file of another format.

    Raises:
        DataError: its "format" is missing or is not `FORMAT`.
    """
    if record.get("format") != FORMAT:
        found = record.get("format", "none")
        raise DataError(
            f"{path} has format {found}, where this version reads {FORMAT}: use the version that wrote it"
        )


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old content or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)


def make_directories(path: Path, mode: int = 0o777, *, exist_ok: bool = False) -> list[Path]:
    """Makes a directory, with this mode, and its missing parents; returns those that were missing, the path first.

    Raises:
        OSError: one cannot be made, or the path exists already; nothing is left behind.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode, exist_ok=exist_ok)
    except OSError:
        remove_empty(missing[1:])
        raise
    return missing


def remove_empty(directories: Iterable[Path]) -> None:
    """Removes directories, the innermost first, up to the first one that is not empty."""
    for directory in directories:
        try:
            directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
