"""What W&B's package has written into a folder: ``{offline-,}run-TIME-ID/run-ID.wandb``, one for each session of a run.

Such a file is a log in LevelDB's format: blocks of 32 KiB, the first of which begins with 7 other bytes, and in them
pieces of records, each after a checksum (4 bytes), its length (2) and its type (1). A record is a protobuf message.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

HEADER, BLOCK = 7, 32768
FULL, FIRST, LAST = 1, 2, 4


def newest_id(folder: Path) -> str | None:
    """W&B's name of the run that was written last; None where there is none."""
    files = session_files(folder, "*")
    return files[-1].stem.removeprefix("run-") if files else None


def stored_rows(folder: Path, id: str) -> Iterator[dict[str, Any]]:
    """The rows of a run's history in all its sessions, each as values by name."""
    for file in session_files(folder, id):
        for message in messages(file):
            if message.HasField("history"):
                items = message.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wait_for_end(file: Path, seconds: float) -> None:
    """Waits until a session's last message is in its file, which is a little after the package says so.

    Raises:
        TimeoutError: it is not there after that many seconds.
    """
    deadline = time.monotonic() + seconds
    while not any(message.HasField("exit") for message in messages(file)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} has no end")
        time.sleep(0.01)


def session_files(folder: Path, id: str) -> list[Path]:
    """The files of a run's sessions, the newest last."""
    found = folder.glob(f"*run-*-*/run-{id}.wandb")
    return sorted(found, key=lambda file: file.stat().st_mtime_ns)


def messages(file: Path) -> Iterator[Any]:
    """The package's messages in a file, each a ``Record``."""
    return map(Record.FromString, records(file.read_bytes()))


def records(log: bytes) -> Iterator[bytes]:
    """The whole records of a log; what was not written to its end, as at a kill, is left out."""
    place, begun = HEADER, b""
    while True:
        if BLOCK - place % BLOCK < HEADER:  # padding
            place += BLOCK - place % BLOCK
        if place + HEADER > len(log):
            return
        checksum, length, kind = struct.unpack_from("<IHB", log, place)
        piece = log[place + HEADER : place + HEADER + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return
        place += HEADER + length
        begun = piece if kind in (FULL, FIRST) else begun + piece
        if kind in (FULL, LAST):
            yield begun
