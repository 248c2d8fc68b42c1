"""The files of a run directory by name, and how they are written."""

from collections.abc import Mapping
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
