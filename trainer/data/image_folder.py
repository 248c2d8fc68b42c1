"""Image folders and packs of them, whose pictures are decoded when they are needed, or once."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from trainer.data.base import DATA, Batch, Data, LazySplit, Split, digest
from trainer.data.cached_images import cached_images
from trainer.data.class_folders import find_samples, fingerprint_of
from trainer.data.crops import Crops, Transform
from trainer.data.finish import MEAN, Finish
from trainer.data.image_pack import PackedPictures, is_pack, read_pack_manifest
from trainer.data.pictures import PictureFiles, Pictures
from trainer.data.random import mix
from trainer.data.timm_augment import Mixing, timm_transform
from trainer.errors import ConfigError
from trainer.options import MAY_DIFFER, Count, Natural, NonNegative, Range


@DATA.register("image_folder")
def image_folder(
    device: torch.device,
    seed: int,
    *,
    root: Annotated[str, MAY_DIFFER] = "data",
    path: Annotated[str | None, MAY_DIFFER] = None,
    cache: Literal["none", "memory"] = "none",
    image_size: Count = 224,
    resize: Count = 256,
    augment: Literal["torchvision", "timm"] = "torchvision",
    min_scale: Annotated[float, Range(gt=0, le=1)] = 0.08,
    flip: bool = True,
    auto_augment: str | None = None,
    random_erasing: Annotated[float, Range(ge=0, le=1)] = 0.0,
    cutout: Natural = 0,
    mixup: NonNegative = 0.0,
    cutmix: NonNegative = 0.0,
    normalize: bool = True,
) -> Data:
    """Images [3, image_size, image_size]; the classes are the folders in root/train, in order of their names.

    Args:
        root: the folder with train and val.
        path: a pack of such a folder, read instead of it.
        cache: ``memory``: decode all pictures, which have one size, onto the device at the start.
        image_size: height and width of the crop that is trained and evaluated on.
        resize: the shorter side, before the crop at the centre, in evaluation.
        augment: whose random crops and flips: torchvision's, or timm's with a policy or changes of colours.
        min_scale: least share of the picture's area that a random crop shows in training.
        auto_augment, random_erasing: of timm, as in `timm_transform`.
        cutout: side of one square that is set to zero after normalisation, as in `trainer.data.images.Augmentation`.
        mixup, cutmix: of pairs of samples, as in `Mixing`.
    """
    if resize < image_size:
        raise ConfigError(f"data.resize={resize} must be at least data.image_size={image_size}")
    check_timm(augment, cache, auto_augment, random_erasing)
    crops = Crops(image_size, resize, min_scale, flip)
    sets = find_pictures(Path(root), Path(path) if path else None)
    mixing = Mixing(mixup, cutmix, len(sets.classes)) if mixup or cutmix else None
    finish = Finish(device, normalize, cutout, mixing)
    splits: Sequence[Split]
    if cache == "memory":
        splits = cached_images([sets.train, sets.test], crops, finish)
    else:
        if augment == "timm":
            transform = timm_transform(crops, auto_augment, random_erasing, MEAN, finish.normalized)
        else:
            transform = crops.random()
        splits = [
            LazyImages(pictures, transform, crops.centre, finish) for pictures in (sets.train, sets.test)
        ]
    train, test = splits

    def read_images(paths: Sequence[Path]) -> Tensor:
        pictures = PictureFiles([(path, 0) for path in paths])
        read = LazyImages(pictures, crops.random(), crops.centre, finish)
        return read.batch(torch.arange(len(paths)), None)[0]

    return replace(sets.data(train, test, image_size), read_images=read_images)


def check_timm(augment: str, cache: str, auto_augment: str | None, random_erasing: float) -> None:
    """Refuses options that would do nothing.

    Raises:
        ConfigError: one is given without what it belongs to.
    """
    if augment == "timm" and cache == "memory":
        raise ConfigError(
            "data.augment=timm changes picture by picture, data.cache=memory whole batches: set data.cache=none"
        )
    for name, value in (("auto_augment", auto_augment), ("random_erasing", random_erasing)):
        if value and augment != "timm":
            raise ConfigError(f"data.{name}={value} is timm's: add data.augment=timm")


class Sets(NamedTuple):
    """The pictures of a folder or a pack."""

    train: Pictures
    test: Pictures
    classes: list[str]
    fingerprints: tuple[str, str]
    """Of the two sets."""

    def data(self, train: Split, test: Split, size: int) -> Data:
        """The data set with these splits, which are the pictures made into images of this height and width."""
        classes = len(self.classes)
        return Data(
            train=train,
            evals={"test": test},
            model_defaults={"num_classes": classes, "in_channels": 3, "image_size": size},
            kind="images",
            classes=self.classes,
            fingerprint={
                "classes": f"{classes} {digest(os.fsencode('/'.join(self.classes)))}",
                "training files": self.fingerprints[0],
                "evaluation files": self.fingerprints[1],
            },
        )


def find_pictures(root: Path, path: Path | None) -> Sets:
    """The pictures of the pack, if its path is given, otherwise of the folder.

    Raises:
        UserError: the one or the other is not whole.
    """
    if path:
        manifest = read_pack_manifest(path, "data.path=")
        packed = [PackedPictures(path, manifest, split) for split in ("train", "val")]
        prints = manifest.fingerprints["train"], manifest.fingerprints["val"]
        return Sets(packed[0], packed[1], manifest.classes, prints)
    if is_pack(root):
        raise ConfigError(f"data.root={root} is a pack: read it by data.path={root}")
    train, test, classes = find_samples(root, "data.root=")
    prints = fingerprint_of(train, root), fingerprint_of(test, root)
    return Sets(PictureFiles(train), PictureFiles(test), classes, prints)


class LazyImages(LazySplit):
    """Pictures that are decoded when they are needed.

    Args:
        pictures: where they come from.
        transform: changes a picture in training.
        centre: what evaluation sees of a picture, from uint8 [3, H, W] to uint8 [3, size, size].
        finish: makes the batch.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Transform,
        centre: Callable[[Tensor], Tensor],
        finish: Finish,
    ) -> None:
        self.pictures = pictures
        self.transform = transform
        self.centre = centre
        self.finishing = finish
        self.device = finish.device
        self.group = finish.group

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Tensor, key: int | None) -> Batch:
        """Decodes and crops pictures: uint8 [B, 3, H, W], float32 after erasing; and of `Finish.draw`, int64 [B, 4]."""
        images = torch.stack([self._changed(index, key) for index in indices.tolist()])
        size = images.shape[-2], images.shape[-1]
        return images, self.finishing.draw(indices, self.pictures.labels[indices], size, key)

    def finish(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Makes the batch of what was read, on the device."""
        return self.finishing(inputs, targets)

    def _changed(self, index: int, key: int | None) -> Tensor:
        image = self.pictures.decode(index)
        return self.centre(image) if key is None else self.transform(image, mix(key, index))
