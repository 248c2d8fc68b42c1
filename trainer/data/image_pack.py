"""Packs: the pictures of an image folder in a few tar files, and an index by which each is read from its place.

The tar files are in the layout of the package webdataset: the members of a picture are ``NUMBER.jpeg``, with the suffix
of its file, and ``NUMBER.cls``, its label in digits.
"""

import json
import os
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.open_files import OpenFiles
from trainer.data.pictures import Pictures
from trainer.data.shards import MANIFEST, checksum
from trainer.errors import DataError
from trainer.rundir.files import FORMAT, atomic_path, atomic_write_text, check_format

KIND = "images"


@dataclass(frozen=True)
class PackManifest:
    """What a pack holds."""

    classes: list[str]
    """Their names; a label is a place among them."""
    samples: dict[str, int]
    """Of the splits ``train`` and ``val``."""
    fingerprints: dict[str, str]
    """Of the names and labels of a split, as of the folder that it was made of."""
    shards: dict[str, list[str]]
    """The names of a split's tar files, in order."""
    sizes: dict[str, int]
    """Bytes of each tar file and index."""
    checksums: dict[str, str]
    """SHA-256 of each tar file and index."""
    identity: str
    """Of the folder and the options of which it was made."""
    kind: str = KIND
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Writes it, after which the pack counts as complete."""
        atomic_write_text(folder / MANIFEST, json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class Index:
    """Where the pictures of a split are: arrays of their number N."""

    shard: np.ndarray
    """The number of its tar file among those of the split, int32."""
    offset: np.ndarray
    """Its first byte there, int64."""
    size: np.ndarray
    """Its bytes, int64."""
    crc32: np.ndarray
    """A checksum of them, uint32."""
    label: np.ndarray
    """int64."""
    names: np.ndarray
    """Of all its files within the folder, with a zero behind each, uint8."""

    def write(self, path: Path) -> None:
        """Writes it to a file, the same bytes at any time."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Reads one that was written whole."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def index_name(split: str) -> str:
    """The file name of a split's index."""
    return f"{split}.npz"


def is_pack(folder: Path) -> bool:
    """Whether a folder's manifest says that it is a pack, whether or not it is a whole one."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("kind") == KIND


def read_pack_manifest(folder: Path, where: str) -> PackManifest:
    """The manifest of a pack.

    Args:
        folder: as written by ``python -m trainer.data pack``.
        where: the option that names it, for messages.

    Raises:
        UserError: it is no pack, is not complete, or of another version.
    """
    path = folder / MANIFEST
    if not is_pack(folder):
        why = f"{MANIFEST} is of something else" if path.exists() else f"it has no {MANIFEST}"
        raise DataError(
            f"{where}{folder} is no complete pack ({why}): make it with python -m trainer.data pack"
        )
    values: dict[str, Any] = json.loads(path.read_text())
    check_format(values, path)
    try:
        return PackManifest(**values)
    except TypeError:
        raise DataError(f"{path} is damaged: make the pack again") from None


class PackedPictures(Pictures):
    """The pictures of a split, read where they are asked for, by any number of processes.

    Args:
        folder: as written by ``python -m trainer.data pack``.
        manifest: of the folder.
        split: ``train`` or ``val``.

    Raises:
        DataError: the index is damaged, or a tar file is missing or of the wrong size.
    """

    def __init__(self, folder: Path, manifest: PackManifest, split: str) -> None:
        path = folder / index_name(split)
        self.paths = [folder / name for name in manifest.shards[split]]
        for file in (path, *self.paths):
            check_size(file, manifest.sizes[file.name])
        if checksum(path) != manifest.checksums[path.name]:
            raise DataError(f"{path} is damaged: copy or make the pack again")
        self.index = Index.read(path)
        self.labels = torch.from_numpy(self.index.label)
        self._files = OpenFiles(self.paths.__getitem__)

    def name(self, index: int) -> str:
        """Its name in the folder of which the pack was made, and its tar file."""
        names = self.index.names.tobytes().split(b"\0")
        return f"{os.fsdecode(names[index])} in {self.paths[self.index.shard[index]]}"

    def read(self, index: int) -> bytes:
        """Its bytes, if they are what was packed."""
        file = self._files[int(self.index.shard[index])]
        content = os.pread(file, int(self.index.size[index]), int(self.index.offset[index]))
        if zlib.crc32(content) != self.index.crc32[index]:
            raise DataError(f"{self.name(index)} is not what was packed: copy or make the pack again")
        return content


def check_size(path: Path, size: int) -> None:
    """Notices a copy that was interrupted, without reading the file.

    Raises:
        DataError: the file is missing or of another size.
    """
    found = path.stat().st_size if path.exists() else None
    if found != size:
        what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
        raise DataError(f"{path} {what}: copy or make the pack again")


def verify_pack(folder: Path) -> PackManifest:
    """Reads all files of a pack.

    Raises:
        UserError: one is not what was written.
    """
    manifest = read_pack_manifest(folder, "")
    for name, expected in manifest.checksums.items():
        check_size(folder / name, manifest.sizes[name])
        if checksum(folder / name) != expected:
            raise DataError(f"{folder / name} is damaged: its checksum is not that of the manifest")
    return manifest
