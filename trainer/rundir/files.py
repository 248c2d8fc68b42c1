"""The files of a run directory by name, how they are written, and the number of their format. Imports no torch."""

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.rundir.strict_json import dumps

CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
STATUS = "status.json"
METRICS = "metrics.jsonl"
MEMORY = "profile/memory.json"

FORMAT = 1
"""Of the records that this version writes, under the key ``format``; it grows when an old reader would misread one."""


CHECKSUM = "checksum"
"""The key of a record's own."""


def check_format(record: Any, path: Path, known: int = FORMAT) -> None:
    """Refuses a record that another version of this program has written, or that has changed since.

    Args:
        record: what was read, a mapping with the key ``format``.
        path: the file that it was read from.
        known: the format that this version reads.

    Raises:
        UserError: it has no format number, or another one; or its checksum is that of other content.
    """
    found = record.get("format") if isinstance(record, dict) else None
    if found != known:
        what = "no format number" if found is None else f"format {found}"
        raise UserError(
            f"{path} has {what}, but this version of the trainer reads format {known} only: "
            f"use the version that wrote it, or choose another directory"
        )
    if CHECKSUM in record:
        content = {key: value for key, value in record.items() if key != CHECKSUM}
        if with_checksum(content) != record:
            raise UserError(f"{path} is damaged, its checksum is that of other content: remove or restore it")


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the checksum of its JSON text, by which `check_format` finds a change of a byte."""
    return {**record, CHECKSUM: f"{zlib.crc32(dumps(record).encode()):08x}"}


def sealed_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON whose last entry is the checksum of what stands before it."""
    text = dumps(record).encode()[:-1]
    return text + f', "{CHECKSUM}": "{zlib.crc32(text):08x}"}}\n'.encode()


def check_line(line: bytes) -> None:
    """Checks a line that `sealed_line` may have made; one without a checksum, as others write it, passes.

    Raises:
        ValueError: it has changed since.
    """
    text, found, checksum = line.rpartition(f', "{CHECKSUM}": "'.encode())
    if found and checksum != f'{zlib.crc32(text):08x}"}}\n'.encode():
        raise ValueError("its checksum is that of other content")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file, link or directory to, renamed to ``path`` at the end.

    A reader sees what was at ``path`` before or all of the new content. After an error nothing of it is left.

    Raises:
        OSError: it cannot be renamed, for instance a directory onto one that is not empty.
    """
    part = path.with_name(f".{path.name}.part")
    _remove(part)  # of a process that was killed
    try:
        yield part
        part.replace(path)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old content or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def overwrite(path: Path, text: str) -> bool:
    """Writes over a file where its disk is too full for a second one, in one system call; returns whether it fits.

    Blanks at the end fill it up to its old length, so that what is left of the old content is never read.
    """
    content = text.encode()
    try:
        with path.open("r+b", buffering=0) as file:
            old = os.fstat(file.fileno())
            if len(content) > old.st_blocks * 512:  # it would need another block
                return False
            return file.write(content.ljust(old.st_size)) >= len(content)
    except OSError:
        return False


def fsync(path: Path) -> None:
    """Returns once a file's content, or a directory's list of names, is on the disk: it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
