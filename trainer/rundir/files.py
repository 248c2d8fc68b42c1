"""The files of a run directory by name, and how they are written."""

from pathlib import Path

CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
STATUS = "status.json"
METRICS = "metrics.jsonl"


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old content or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.rename(path)
