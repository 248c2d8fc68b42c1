"""Image sets that live on the device as uint8 and are augmented in whole batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.base import Batch, Data, Split, digest
from trainer.data.pictures import decode_all
from trainer.data.random import uniform
from trainer.errors import DataError

MODES = {1: "L", 3: "RGB"}
"""PIL's, by the number of channels."""


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a training image, in this order; zero or false is off.

    Args:
        crop_padding: pixels of black around the image, of which a window of its size is cut at random.
        flip: mirrors left and right with probability 1/2.
        cutout: side of one square set to zero after normalisation. Its centre is uniform over the image, so
            that the square may extend beyond it (DeVries and Taylor, Improved Regularization of Convolutional Neural
            Networks with Cutout, arXiv:1708.04552).
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0


class MemoryImages(Split):
    """Labelled images on the device: bytes until a batch is cut from them, so that a set takes little room.

    Args:
        images: uint8 [N, C, H, W].
        labels: integers [N].
        scale, shift: per channel; an input is stored value * scale + shift.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        scale: list[float],
        shift: list[float],
        device: torch.device,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.device = device
        # MPS would copy a view that overlaps itself; its memory is the CPU's anyway
        home = torch.device("cpu") if device.type == "mps" else device
        self.augmentation = augmentation or Augmentation()
        self.size = images.shape[-2], images.shape[-1]
        padded = F.pad(images.to(home), (self.augmentation.crop_padding,) * 4)
        self.padded = padded.contiguous()  # [N, C, H + 2p, W + 2p]
        self.labels = labels.long().to(home)
        self.scale = torch.tensor(scale, device=home).view(-1, 1, 1)  # [C, 1, 1]
        self.shift = torch.tensor(shift, device=home).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Returns inputs, float32 [B, C, H, W], augmented unless the key is None, and labels, int64 [B]."""
        augmentation, home = self.augmentation, self.labels.device
        if key is None:
            top = left = torch.tensor(augmentation.crop_padding, device=home)
        else:
            top, left, mirrored, *centre = draw(augmentation, self.size, indices, key).to(home)
        indices = indices.to(home)
        images = windows(self.padded, self.size, indices, top, left)  # uint8 [B, C, H, W]
        if key is not None and augmentation.flip:
            images = flip(images, mirrored)
        inputs = images.float().mul_(self.scale).add_(self.shift)
        if key is not None and augmentation.cutout:
            inputs = cutout(inputs, augmentation.cutout, *centre)
        return inputs.to(self.device), self.labels.index_select(0, indices).to(self.device)


def draw(augmentation: Augmentation, size: tuple[int, int], indices: Tensor, key: int) -> Tensor:
    """Draws the augmentation of each sample.

    Returns:
        int64 [5, B]: the window's top and left in the padded image, whether it is mirrored, and the row and
        the column of the cutout's centre.
    """
    offsets = 2 * augmentation.crop_padding + 1
    limits = np.array([offsets, offsets, 2, *size])[:, None]
    return torch.from_numpy((uniform(key, indices, 5) * limits).astype(np.int64))


def windows(images: Tensor, size: tuple[int, int], indices: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Cuts a window of one size from each of the chosen images.

    Args:
        images: [N, C, H, W], contiguous.
        size: height and width of the windows.
        indices: int64 [B], the chosen images.
        top, left: int64 [B], the windows' corners in each image.

    Returns:
        [B, C, height, width].
    """
    _, channels, _, _ = images.shape
    image, channel, row, _ = images.stride()
    extent = (channels - 1) * channel + (size[0] - 1) * row + size[1]
    # All possible windows, by the position of their first value: one index to gather with, where indexing
    # by image, row and column takes four times as long.
    view = images.as_strided((images.numel() - extent + 1, channels, *size), (1, channel, row, 1))
    return view.index_select(0, indices * image + top * row + left)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors left and right the images [B, C, H, W] where mirrored (int64 [B]) is 1; elsewhere it is 0."""
    batch = len(images)
    chosen = torch.arange(batch, device=images.device) + batch * mirrored
    return torch.cat([images, images.flip(-1)]).index_select(
        0, chosen
    )  # whole images: faster than torch.where


def cutout(images: Tensor, length: int, centre_y: Tensor, centre_x: Tensor) -> Tensor:
    """Sets to zero, in place, a square around (centre_y, centre_x) in each image [B, C, H, W]."""

    def outside(pixels: int, centre: Tensor) -> Tensor:  # [B, pixels], 0 in the square's span and 1 outside
        distance = torch.arange(pixels, device=images.device) - (centre[:, None] - length // 2)
        return ((distance < 0) | (distance >= length)).to(images.dtype)

    rows = outside(images.shape[-2], centre_y)
    columns = outside(images.shape[-1], centre_x)
    return images.mul_(torch.maximum(rows[:, None, :, None], columns[:, None, None, :]))


def check_sets(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int) -> None:
    """Checks images [N, C, H, W] and labels [N] of both sets.

    Raises:
        DataError: images have different sizes, there are none, or a label is not in [0, num_classes).
    """
    shapes = [list(images.shape[1:]) for images, _ in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"images for training have the shape {shapes[0]} and for testing {shapes[1]}: they must be the same"
        )
    for what, (images, labels) in (("training", train), ("testing", test)):
        if not len(images):
            raise DataError(f"there are no images for {what}")
        if not 0 <= labels.min() <= labels.max() < num_classes:
            odd = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(f"an image for {what} has the label {odd}: labels must be 0 to {num_classes - 1}")


def memory_images(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    num_classes: int,
    mean: list[float],
    std: list[float],
    peak: int = 255,
    normalize: bool,
    augmentation: Augmentation,
    device: torch.device,
    classes: Sequence[str] = (),
) -> Data:
    """Builds a data set of images (uint8 [N, C, H, W]) and labels (integers [N]) that live on the device.

    Args:
        mean, std: of the training set, per channel, with values in [0, 1].
        peak: the stored value that stands for 1.
        normalize: to zero mean and unit variance; otherwise inputs are in [0, 1].
        classes: their names.

    Raises:
        DataError: the two sets do not fit each other, one is empty, or a label is not a class.
    """
    check_sets(train, test, num_classes)
    channels, height, width = train[0].shape[1:]
    if not normalize:
        mean, std = [0.0] * channels, [1.0] * channels
    scale = [1 / (peak * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]

    def split(images: Tensor, labels: Tensor, augmentation: Augmentation | None = None) -> MemoryImages:
        return MemoryImages(
            images, labels, scale=scale, shift=shift, device=device, augmentation=augmentation
        )

    def read_images(paths: Sequence[Path]) -> Tensor:
        values = decode_all(paths, MODES[channels], (height, width)) * peak  # scaled as the stored ones are
        scales, shifts = (torch.tensor(each).view(-1, 1, 1) for each in (scale, shift))
        return (values * scales + shifts).to(device)

    return Data(
        train=split(*train, augmentation),
        evals={"test": split(*test)},
        model_defaults={
            "num_classes": num_classes,
            "in_channels": channels,
            "image_size": height if height == width else (height, width),
        },
        kind="images",
        classes=classes,
        read_images=read_images if channels in MODES else None,
        fingerprint={
            f"{name} samples": f"{len(labels)} {digest(labels.numpy().tobytes())}"
            for name, (_, labels) in {"training": train, "test": test}.items()
        },
    )
