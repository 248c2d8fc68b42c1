"""Folders of pictures, a folder for each class: the layouts of ImageNet and of Tiny-ImageNet."""

import os
from collections.abc import Iterator
from pathlib import Path

from trainer.data.base import digest
from trainer.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: file name, class, box; separated by tabs
Sample = tuple[Path, int]


def find_samples(root: Path, where: str = "") -> tuple[list[Sample], list[Sample], list[str]]:
    """Returns the training and the validation files with their labels, and the names of the classes.

    Args:
        root: the folder with train and val.
        where: the option that names it, for messages.

    Raises:
        DataError: a folder is missing or empty, or the two sets have different classes.
    """
    layout = f"{where}{root} must hold train/CLASS/*.jpg and val/CLASS/*.jpg"
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise DataError(f"{root / name} is missing: {layout}")
    train, classes = _class_folders(root / "train")
    if (root / "val" / ANNOTATIONS).is_file():
        val, found = _annotated(root / "val")
    else:
        val, found = _class_folders(root / "val")
    for name, samples in (("train", train), ("val", val)):
        if not samples:
            raise DataError(f"{root / name} has no images: {layout}")
    if classes != found:
        unmatched = sorted(set(classes) ^ set(found))
        side = "train" if unmatched[0] in classes else "val"
        raise DataError(
            f"{root}: train has {len(classes)} classes and val {len(found)}; they must be the same, "
            f"but {unmatched[0]} is in {side} only"
        )
    labels = {name: label for label, name in enumerate(classes)}
    return (
        [(path, labels[name]) for path, name in train],
        [(path, labels[name]) for path, name in val],
        classes,
    )


def fingerprint_of(samples: list[Sample], root: Path) -> str:
    """The number of files and a digest of their names and labels, wherever their folder is."""
    names = (f"{path.relative_to(root)}:{label}" for path, label in samples)
    return f"{len(samples)} {digest(os.fsencode('/'.join(names)))}"


def _class_folders(folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Files with their classes, and all classes; files may lie deeper, as in Tiny-ImageNet's CLASS/images."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and is_visible(entry.name))
    samples = []
    for name in classes:
        files = sorted(_pictures(folder / name))
        if not files:
            raise DataError(f"{folder / name} has no images: every class needs some")
        samples += [(file, name) for file in files]
    return samples, classes


def _pictures(folder: Path) -> Iterator[Path]:
    """The picture files of a class. Links to folders are followed, but not to one that it is already in.

    Raises:
        DataError: a link leads to a folder that has been visited, or to one that is around it.
    """
    visited = {identity(parent) for parent in (folder, folder.parent)}
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(is_visible, folders))
        for name in folders:
            found = identity(Path(where, name))
            if found in visited:
                raise DataError(
                    f"{Path(where, name)} leads to a folder whose pictures count already: remove it"
                )
            visited.add(found)
        yield from (Path(where, f) for f in files if is_visible(f) and f.lower().endswith(EXTENSIONS))


def identity(path: Path) -> tuple[int, int]:
    """What two paths of one folder have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def is_visible(name: str) -> bool:
    """Whether a file is meant to be data, unlike .ipynb_checkpoints or macOS's ._0.jpg."""
    return not name.startswith(".")


def _annotated(folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Tiny-ImageNet's validation set: files in images/, their classes in a table."""
    samples = []
    for number, line in enumerate((folder / ANNOTATIONS).read_text().splitlines(), start=1):
        file, _, rest = line.partition("\t")
        if not rest:
            raise DataError(f"{folder / ANNOTATIONS} line {number} is not: file name, tab, class")
        samples.append((folder / "images" / file, rest.split("\t")[0]))
    return samples, sorted({name for _, name in samples})
