"""The manifest of a checkpoint: its files with their sizes and checksums, which say whether it is damaged."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.errors import one_line
from trainer.rundir.files import check_format, fsync

MANIFEST = "manifest.json"

FORMAT = 2
"""Of checkpoints; the other records of a run have a number of their own."""

BLOCK = 2**20
"""Bytes that are read at once."""

Files = dict[str, list[int]]
"""Size in bytes and CRC-32 of files by name."""


class Damaged(Exception):
    """A checkpoint is not what was written; the message says which file. An error of the machine is not this."""


def checksums(files: Iterable[Path]) -> Files:
    """Size and CRC-32 of files, as they are on the disk.

    Raises:
        OSError: one cannot be read.
    """
    return {file.name: [file.stat().st_size, crc32(file)] for file in files}


def crc32(path: Path) -> int:
    """The CRC-32 of a file: of zlib's and hashlib's checksums the fastest, and no change of a byte escapes it."""
    value = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def write_manifest(checkpoint: Path, step: int, files: Files) -> None:
    """Writes the manifest of a checkpoint; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    body = {"format": FORMAT, "step": step, "files": files}
    path = checkpoint / MANIFEST
    path.write_text(json.dumps({**body, "crc32": _own_crc32(body)}), encoding="utf-8")
    fsync(path)


def read_manifest(checkpoint: Path) -> Files:
    """The files of a checkpoint.

    Raises:
        Damaged: there is no manifest, or it is damaged.
        UserError: the checkpoint has another format.
        OSError: it cannot be read.
    """
    path = checkpoint / MANIFEST
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{MANIFEST} is missing") from None
    except (ValueError, RecursionError):
        raise Damaged(f"{MANIFEST} is not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise Damaged(f"{MANIFEST} names no files")
    own = record.pop("crc32", None)
    if own is not None and own != _own_crc32(record):
        raise Damaged(f"the checksum of {MANIFEST} is another")
    check_format(record, path, FORMAT)
    if own is None:
        raise Damaged(f"{MANIFEST} has no checksum")
    return record["files"]


def verify(checkpoint: Path, rank: int = 0, world_size: int = 1) -> None:
    """Compares a checkpoint's files with its manifest; of several ranks each reads a part of them.

    Raises:
        Damaged: a file is missing or is not what was written.
        UserError: the checkpoint has another format.
        OSError: a file cannot be read.
    """
    files = read_manifest(checkpoint)
    for name in sorted(files)[rank::world_size]:
        size, crc = files[name]
        try:
            actual = (checkpoint / name).stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        if actual != size:
            raise Damaged(f"{name} has {actual} of {size} bytes")
        if crc32(checkpoint / name) != crc:
            raise Damaged(f"the checksum of {name} is another")


def failure(error: OSError | MemoryError) -> str:
    """What the machine says of a failure, which is no damage."""
    return getattr(error, "strerror", None) or f"{type(error).__name__} {one_line(error)}".strip()


def _own_crc32(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
