"""A folder of token shards: one sequence of tokens cut into files of equal size, and the manifest that describes it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.open_files import OpenFiles
from trainer.errors import DataError
from trainer.rundir.files import FORMAT, atomic_write_text, check_format

MANIFEST = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    tokens: int
    """In all shards; each document's end token is one of them."""
    documents: int
    shard_tokens: int
    """Of each shard but the last one, which has the rest."""
    dtype: str
    """Of a token on disk, little-endian: ``<u2`` or ``<u4``."""
    vocab_size: int
    end_token: int
    """Follows each document."""
    tokenizer: str
    """``bytes``, a name of tiktoken's, or ``tokenizer.json``, which is in the folder then."""
    tokenizer_hash: str
    checksums: list[str]
    """SHA-256 of each shard."""
    identity: str
    """Of the command that made it."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Writes it, after which the folder counts as complete."""
        atomic_write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1))

    @property
    def fingerprint(self) -> str:
        """Names the content, wherever the folder lies: the same for the same tokens of the same tokenizer."""
        content = json.dumps([self.tokenizer_hash, self.tokens, self.checksums])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_manifest(folder: Path, where: str) -> Manifest:
    """The manifest of a folder.

    Args:
        folder: as written by ``python -m trainer.data tokenize``.
        where: the option that names it, for messages.

    Raises:
        UserError: it is no such folder, is not complete, or is of another version.
    """
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise DataError(
            f"{where}{folder} is no complete folder of token shards ({MANIFEST}: {error.strerror}): "
            "make it with python -m trainer.data tokenize"
        ) from None
    except ValueError:
        raise DataError(f"{path} is damaged: make the folder again") from None
    check_format(values, path)
    try:
        return Manifest(**values)
    except TypeError:
        raise DataError(f"{path} is damaged: make the folder again") from None


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard_{number:05}.bin"


class TokenShards:
    """The tokens of a folder, read where they are asked for; nothing is kept in memory.

    Files are read by ``pread``, which is as quick as a memory map on what the system has cached, does not count
    towards the memory of the process, and ends in an error, not a signal, if a file has become shorter.

    Args:
        folder: as written by ``python -m trainer.data tokenize``.
        where: the option that names it, for messages.

    Raises:
        UserError: it is no such folder, or a shard is missing or of the wrong size.
    """

    def __init__(self, folder: Path, where: str = "") -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, where)
        self.dtype = np.dtype(self.manifest.dtype)
        self._width = self.dtype.itemsize
        self._shard_bytes = self.manifest.shard_tokens * self._width
        self._files = OpenFiles(partial(shard_path, folder))
        self._check_sizes()

    def __len__(self) -> int:
        return self.manifest.tokens

    def read(self, start: int, out: memoryview) -> None:
        """Reads consecutive tokens, from one shard or several.

        Args:
            start: number of the first one.
            out: filled with so many bytes of them as it has.

        Raises:
            DataError: a shard is missing or has become shorter.
        """
        number, offset = divmod(start * self._width, self._shard_bytes)
        count = os.preadv(self._files[number], (out,), offset)
        while count < len(out):  # they go on in the next shard
            if offset + count != self._shard_bytes:
                raise DataError(
                    f"{shard_path(self.folder, number)} has become shorter: copy or make it again"
                )
            out, number, offset = out[count:], number + 1, 0
            count = os.preadv(self._files[number], (out,), offset)

    def _check_sizes(self) -> None:
        """Notices a copy that was interrupted, without reading the shards."""
        left = self.manifest.tokens
        for number in range(len(self.manifest.checksums)):
            path = shard_path(self.folder, number)
            size = min(left, self.manifest.shard_tokens) * self.dtype.itemsize
            left -= self.manifest.shard_tokens
            found = path.stat().st_size if path.exists() else None
            if found != size:
                what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise DataError(f"{path} {what}: copy or make the folder again")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
