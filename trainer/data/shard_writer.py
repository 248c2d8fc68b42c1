"""Writes token shards so that being killed at any moment loses nothing that was saved."""

import hashlib
import os
from pathlib import Path

import numpy as np

from trainer.data.shards import shard_path
from trainer.errors import DataError
from trainer.rundir.files import fsync

PART = "shard.part"


class ShardWriter:
    """Appends tokens to the shards of a folder; goes on where `saved` ones end.

    The last shard is written under a name of its own until it is full. What follows the saved tokens in it, of a
    process that was killed, is dropped.

    Args:
        folder: of the shards.
        dtype: of a token on disk.
        shard_tokens: in each shard.
        checksums: of the shards that are full.
        saved: tokens that are to be kept of those in the folder.

    Raises:
        DataError: the folder has fewer.
    """

    def __init__(
        self, folder: Path, dtype: np.dtype, shard_tokens: int, checksums: list[str], saved: int
    ) -> None:
        self.folder = folder
        self.dtype = dtype
        self.shard_tokens = shard_tokens
        self.checksums = list(checksums)
        self.tokens = saved
        self._part = folder / PART
        self._digest = hashlib.sha256()
        if (full := shard_path(folder, len(checksums))).exists():  # since the tokens were saved
            full.rename(self._part)
        self._part.touch()
        self._file = self._part.open("r+b")
        self._keep((saved - len(checksums) * shard_tokens) * dtype.itemsize)

    def write(self, tokens: np.ndarray) -> None:
        """Appends tokens, in as many shards as they need."""
        while len(tokens):
            room = (len(self.checksums) + 1) * self.shard_tokens - self.tokens
            fitting, tokens = tokens[:room], tokens[room:]
            content = np.ascontiguousarray(fitting, dtype=self.dtype)
            self._file.write(content.data)
            self._digest.update(content.data)
            self.tokens += len(content)
            if len(content) == room:
                self._finish_shard()

    def save(self) -> None:
        """Returns once all tokens are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        fsync(self.folder)

    def close(self) -> None:
        """Makes a shard of the rest, and ends."""
        if self._file.tell():
            self._finish_shard()
        self._file.close()
        self._part.unlink()

    def _finish_shard(self) -> None:
        self.save()
        self._file.close()
        self._part.rename(shard_path(self.folder, len(self.checksums)))
        self.checksums.append(self._digest.hexdigest())
        self._digest = hashlib.sha256()
        self._file = self._part.open("w+b")

    def _keep(self, size: int) -> None:
        """Drops what follows that many bytes of the last shard, and reads these for its checksum."""
        left = size
        while block := self._file.read(min(left, 2**20)):
            self._digest.update(block)
            left -= len(block)
        if left or not all(shard_path(self.folder, number).exists() for number in range(len(self.checksums))):
            raise DataError(f"{self.folder} lacks tokens that were saved in it: remove it and begin anew")
        self._file.truncate(size)
