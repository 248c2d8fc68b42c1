"""Folders of image files, decoded when they are needed: the layouts of ImageNet and of Tiny-ImageNet."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.base import DATA, Batch, Data, LazySplit, digest
from trainer.data.decode import EXTENSIONS, decode
from trainer.data.images import cutout
from trainer.data.random import mix, uniform
from trainer.errors import ConfigError, DataError
from trainer.options import MAY_DIFFER, Count, Natural, Range

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's training set
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's: file name, class, box; separated by tabs
Sample = tuple[Path, int]


@DATA.register("image_folder")
def image_folder(
    device: torch.device,
    seed: int,
    *,
    root: Annotated[str, MAY_DIFFER] = "data",
    image_size: Count = 224,
    resize: Count = 256,
    min_scale: Annotated[float, Range(gt=0, le=1)] = 0.08,
    flip: bool = True,
    cutout: Natural = 0,
    normalize: bool = True,
) -> Data:
    """Images [3, image_size, image_size]; the classes are the folders in root/train, in order of their names.

    Args:
        image_size: height and width of the crop that is trained and evaluated on.
        resize: the shorter side, before the crop at the centre, in evaluation.
        min_scale: least share of the picture's area that a random crop shows in training.
        cutout: side of one square that is set to zero after normalisation, as in `trainer.data.images.Augmentation`.
    """
    if resize < image_size:
        raise ConfigError(f"data.resize={resize} must be at least data.image_size={image_size}")
    from torchvision.transforms import v2  # slow to import, and most runs do without it

    train, test, classes = find_samples(Path(root))
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(min_scale, 1.0)),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
            v2.PILToTensor(),
        ]
    )
    centre = v2.Compose([v2.Resize(resize), v2.CenterCrop(image_size), v2.PILToTensor()])

    def split(samples: list[Sample]) -> "ImageFiles":
        return ImageFiles(
            samples, augment=augment, centre=centre, cutout=cutout, normalize=normalize, device=device
        )

    def read_images(paths: Sequence[Path]) -> Tensor:
        return split([(path, 0) for path in paths]).batch(torch.arange(len(paths)), None)[0]

    return Data(
        train=split(train),
        evals={"test": split(test)},
        model_defaults={"num_classes": len(classes), "in_channels": 3, "image_size": image_size},
        kind="images",
        classes=classes,
        read_images=read_images,
        fingerprint={
            "classes": f"{len(classes)} {digest(os.fsencode('/'.join(classes)))}",
            "training files": fingerprint_of(train, Path(root)),
            "evaluation files": fingerprint_of(test, Path(root)),
        },
    )


def fingerprint_of(samples: list[Sample], root: Path) -> str:
    """The number of files and a digest of their names and labels, wherever their folder is."""
    names = (f"{path.relative_to(root)}:{label}" for path, label in samples)
    return f"{len(samples)} {digest(os.fsencode('/'.join(names)))}"


class ImageFiles(LazySplit):
    """Image files and their labels.

    Args:
        samples: paths and labels.
        augment, centre: from a PIL image to uint8 [3, H, W], for training and for evaluation.
        cutout: side of the square set to zero in training; 0: off.
    """

    def __init__(
        self,
        samples: list[Sample],
        *,
        augment: Callable[[Image.Image], Tensor],
        centre: Callable[[Image.Image], Tensor],
        cutout: int,
        normalize: bool,
        device: torch.device,
    ) -> None:
        # An array: a list's reference counts would have each worker process copy it, page by page.
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])
        self.augment, self.centre = augment, centre
        self.device = device
        self.cutout = cutout
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Tensor, key: int | None) -> Batch:
        """Decodes and crops the images: uint8 [B, 3, H, W], and int64 [B, 3]: label and centre of the cutout."""
        images = torch.stack([self._decode(index, key) for index in indices.tolist()])
        centres = torch.full((len(indices), 2), -self.cutout)  # so far outside that nothing is cut
        if key is not None and self.cutout:
            height, width = images.shape[-2:]
            centres = torch.from_numpy((uniform(key, indices, 2).T * (height, width)).astype(np.int64))
        return images, torch.cat([self.labels[indices][:, None], centres], dim=1)

    def finish(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Moves a batch to the device and normalises it: float32 [B, 3, H, W], int64 [B]."""
        inputs = inputs.to(self.device, non_blocking=True).float().div_(255)
        if self.normalize:
            mean, std = (inputs.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            inputs.sub_(mean).div_(std)
        labels, *centre = targets.to(self.device, non_blocking=True).unbind(1)
        return cutout(inputs, self.cutout, *centre) if self.cutout else inputs, labels

    def _decode(self, index: int, key: int | None) -> Tensor:
        image = decode(os.fsdecode(self.paths[index]))
        if key is None:
            return self.centre(image)
        with seeded(mix(key, index)):
            return self.augment(image)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator within the context; afterwards its state is what it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices' generators, too
    try:
        yield
    finally:
        torch.set_rng_state(state)


def find_samples(root: Path) -> tuple[list[Sample], list[Sample], list[str]]:
    """Returns the training and the validation files with their labels, and the names of the classes.

    Raises:
        DataError: a folder is missing or empty, or the two sets have different classes.
    """
    layout = f"data.root={root} must hold train/CLASS/*.jpg and val/CLASS/*.jpg"
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
