"""From an image folder to a pack: a tar file at a time, so that it can be interrupted and gone on with."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np

from trainer.data.class_folders import Sample, find_samples, fingerprint_of
from trainer.data.image_pack import Index, PackManifest, index_name, read_pack_manifest
from trainer.data.out_folder import PROGRESS, locked
from trainer.data.shards import MANIFEST, checksum
from trainer.errors import DataError, UserError, one_line
from trainer.rundir.files import (
    FORMAT,
    atomic_path,
    atomic_write_text,
    check_format,
    fsync,
)
from trainer.rundir.lock import LOCK

SHARD_MIB = 512
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Plan:
    """What of a split goes where, which follows from the sizes of its files alone.

    Args:
        split: its name.
        samples: paths and labels, [N].
        sizes: bytes of the files, int64 [N].
        shard: the number of each one's tar file, int32 [N].
        offset: its first byte there, int64 [N].
    """

    split: str
    samples: list[Sample]
    sizes: np.ndarray
    shard: np.ndarray
    offset: np.ndarray

    def shards(self) -> Iterator[tuple[str, list[int]]]:
        """The names of the tar files, each with the numbers of its pictures."""
        for shard, numbers in groupby(range(len(self.samples)), self.shard.__getitem__):
            yield f"{self.split}-{shard:05}.tar", list(numbers)


def pack(root: Path, out: Path, shard_mib: int, report: Callable[[int, int], None]) -> PackManifest:
    """Packs an image folder, from where an interrupted call has come to.

    The pack is the same to the byte whenever and however often interrupted it is made.

    Args:
        root: the folder, with train and val.
        out: the folder of the pack; made if it is missing, and removed again if no tar file comes to be in it.
        shard_mib: MiB of a tar file, which ends with the first picture that reaches them.
        report: called with the number of tar files and of those that are done.

    Raises:
        UserError: the image folder is no such folder, a file cannot be read, or ``out`` is of something else.
    """
    train, val, classes = find_samples(root)
    plans = [plan("train", train, shard_mib * 2**20), plan("val", val, shard_mib * 2**20)]
    identity = identity_of(plans, root, shard_mib)
    try:
        with locked(out, lambda: is_unused(out)):
            if begin(out, identity):
                return read_pack_manifest(out, "--out ")
            return write(plans, root, out, classes, identity, report)
    except OSError as error:  # of the pack; a picture that cannot be read is a DataError
        raise UserError(f"--out {out} cannot be written: {one_line(error)}") from None


def plan(split: str, samples: list[Sample], shard_bytes: int) -> Plan:
    """Shares a split out to tar files.

    Raises:
        DataError: a file is missing.
    """
    try:
        sizes = np.array([path.stat().st_size for path, _ in samples], dtype=np.int64)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    shards, offsets = np.empty(len(samples), dtype=np.int32), np.empty(len(samples), dtype=np.int64)
    shard = place = 0
    for number, size in enumerate(sizes.tolist()):
        shards[number], offsets[number] = shard, place + BLOCK  # behind its header
        place += BLOCK + -(-size // BLOCK) * BLOCK + 2 * BLOCK  # the label has a header and a block
        if place >= shard_bytes:
            shard, place = shard + 1, 0
    return Plan(split, samples, sizes, shards, offsets)


def identity_of(plans: list[Plan], root: Path, shard_mib: int) -> str:
    """Names the pack that comes of it: another one does not go on in the same folder."""
    digest = hashlib.sha256(str(shard_mib).encode())
    for planned in plans:
        digest.update(fingerprint_of(planned.samples, root).encode() + planned.sizes.tobytes())
    return digest.hexdigest()[:16]


def is_unused(folder: Path) -> bool:
    """Whether no tar file is in a folder."""
    return {path.name for path in folder.iterdir()} <= {LOCK, PROGRESS}


def begin(folder: Path, identity: str) -> bool:
    """Notes whose pack the folder is; returns whether it is complete.

    Raises:
        UserError: it is another one's, or holds something else.
    """
    complete = (folder / MANIFEST).exists()
    if complete:
        found = read_pack_manifest(folder, "--out ").identity
    elif (folder / PROGRESS).exists():
        saved = json.loads((folder / PROGRESS).read_text())
        check_format(saved, folder / PROGRESS)
        found = saved["identity"]
    elif [path.name for path in folder.iterdir() if path.name != LOCK]:
        raise UserError(f"--out {folder} is neither empty nor a pack: choose another")
    else:
        atomic_write_text(folder / PROGRESS, json.dumps({"identity": identity, "format": FORMAT}))
        found = identity
    if found != identity:
        raise UserError(
            f"--out {folder} was made of another folder or with other options: repeat those, or choose another --out"
        )
    return complete


def write(
    plans: list[Plan],
    root: Path,
    out: Path,
    classes: list[str],
    identity: str,
    report: Callable[[int, int], None],
) -> PackManifest:
    """Writes the tar files that are not there yet, then the indexes and the manifest."""
    shards = [(planned, name, numbers) for planned in plans for name, numbers in planned.shards()]
    sums: dict[str, list[int]] = {planned.split: [] for planned in plans}
    for done, (planned, name, numbers) in enumerate(shards):
        report(len(shards), done)
        if not (out / name).exists():
            write_shard(out / name, planned, numbers)
        sums[planned.split] += content_sums(out / name, planned, numbers)
    for planned in plans:
        write_index(out / index_name(planned.split), planned, root, sums[planned.split])
    files = [name for _, name, _ in shards] + [index_name(planned.split) for planned in plans]
    manifest = PackManifest(
        classes=classes,
        samples={planned.split: len(planned.samples) for planned in plans},
        fingerprints={planned.split: fingerprint_of(planned.samples, root) for planned in plans},
        shards={planned.split: [name for name, _ in planned.shards()] for planned in plans},
        sizes={name: (out / name).stat().st_size for name in files},
        checksums={name: checksum(out / name) for name in files},
        identity=identity,
    )
    manifest.write(out)
    (out / PROGRESS).unlink()
    return manifest


def write_shard(path: Path, planned: Plan, numbers: list[int]) -> None:
    """Writes a tar file, which is on the disk before it has its name.

    Raises:
        DataError: a picture cannot be read, or is not of the size that it had before.
    """
    with atomic_path(path) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                file, label = planned.samples[number]
                try:
                    content = file.read_bytes()
                except OSError as error:
                    raise DataError(f"{file} cannot be read: {error.strerror}") from None
                if len(content) != planned.sizes[number]:
                    raise DataError(f"{file} has changed while it was packed: repeat the command")
                add(tar, f"{number:08}{file.suffix.lower()}", content)
                add(tar, f"{number:08}.cls", str(label).encode())
        fsync(part)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Appends a member that depends on nothing but its name and content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def content_sums(path: Path, planned: Plan, numbers: list[int]) -> list[int]:
    """CRC-32 of each picture as it is in the tar file."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    places = ((planned.offset[number], planned.sizes[number]) for number in numbers)
    return [zlib.crc32(content[offset : offset + size].data) for offset, size in places]


def write_index(path: Path, planned: Plan, root: Path, sums: list[int]) -> None:
    """Writes where the pictures of a split are."""
    names = b"".join(os.fsencode(file.relative_to(root)) + b"\0" for file, _ in planned.samples)
    Index(
        shard=planned.shard,
        offset=planned.offset,
        size=planned.sizes,
        crc32=np.array(sums, dtype=np.uint32),
        label=np.array([label for _, label in planned.samples], dtype=np.int64),
        names=np.frombuffer(names, dtype=np.uint8),
    ).write(path)
