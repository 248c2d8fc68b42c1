"""Image sets that live on the device as uint8 and are augmented in whole batches."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.base import Batch, Data, Split
from trainer.data.random import uniform
from trainer.errors import ConfigError

HOLDOUT_SEED = 0  # not the run's: runs of different seeds must share their validation set


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in this order; zero or false is off.

    Args:
        crop_padding: pixels of black put around, from which a window of the image's size is cut at random.
        flip: mirrors left and right, every second time.
        cutout: side of one square set to zero after normalisation. Its centre is uniform over the image, so
            that the square may stick out (DeVries and Taylor, Improved Regularization of Convolutional Neural
            Networks with Cutout, arXiv:1708.04552).
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0


class MemoryImages(Split):
    """Labelled uint8 images on the device.

    Args:
        images: uint8 [N, C, H, W].
        labels: integers [N].
        scale, shift: what makes a stored value an input: value * scale + shift, each of C numbers.
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
        self.images = images.contiguous().to(device)
        self.labels = labels.long().to(device)
        self.scale = torch.tensor(scale, device=device).view(-1, 1, 1)  # [C, 1, 1]
        self.shift = torch.tensor(shift, device=device).view(-1, 1, 1)
        self.augmentation = augmentation or Augmentation()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        chosen = indices.to(self.images.device, non_blocking=True)
        images = self.images.index_select(0, chosen)  # [B, C, H, W]
        targets = self.labels.index_select(0, chosen)
        if key is None or self.augmentation == Augmentation():
            return self._normalise(images), targets
        height, width = images.shape[-2:]
        draws = draw(self.augmentation, (height, width), indices, key).to(images.device, non_blocking=True)
        top, left, mirrored, centre_y, centre_x = draws
        if self.augmentation.crop_padding:
            images = crop(images, self.augmentation.crop_padding, top, left)
        if self.augmentation.flip:
            images = flip(images, mirrored.bool())
        inputs = self._normalise(images)
        if self.augmentation.cutout:
            inputs = cutout(inputs, self.augmentation.cutout, centre_y, centre_x)
        return inputs, targets

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)


def draw(augmentation: Augmentation, size: tuple[int, int], indices: Tensor, key: int) -> Tensor:
    """What happens to each sample.

    Returns:
        int64 [5, B]: the window's top and left in the padded image, whether it is mirrored, and the row and
        the column of the cutout's centre.
    """
    offsets = 2 * augmentation.crop_padding + 1
    limits = np.array([offsets, offsets, 2, *size])[:, None]
    return torch.from_numpy((uniform(key, indices, 5) * limits).astype(np.int64))


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Cuts from each image, padded with zeros, the window of its own size at (top, left).

    Args:
        images: [B, C, H, W].
        top, left: int64 [B], from 0 to 2 * padding.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2p+1, 2p+1, H, W], a view
    return windows[torch.arange(batch, device=images.device), :, top, left]  # [B, C, H, W]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors left and right the images [B, C, H, W] for which mirrored (bool [B]) is true."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def cutout(images: Tensor, length: int, centre_y: Tensor, centre_x: Tensor) -> Tensor:
    """Sets to zero, in place, a square around (centre_y, centre_x) in each image [B, C, H, W]."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - centre_y[:, None] + length // 2  # [B, H]
    columns = torch.arange(width, device=images.device) - centre_x[:, None] + length // 2  # [B, W]
    rows_in = (rows >= 0) & (rows < length)
    columns_in = (columns >= 0) & (columns < length)
    hole = rows_in[:, None, :, None] & columns_in[:, None, None, :]  # [B, 1, H, W]
    return images.masked_fill_(hole, 0.0)


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
    holdout: float,
    device: torch.device,
) -> Data:
    """Data of images (uint8 [N, C, H, W]) and labels (integers [N]) that live on the device.

    Args:
        mean, std: of the training set, per channel, with values in [0, 1].
        peak: the stored value that stands for 1.
        normalize: to zero mean and unit variance; otherwise inputs are in [0, 1].
        holdout: share of the training set that becomes the split "val".

    Raises:
        ConfigError: the holdout leaves one side empty.
    """
    images, labels = train
    channels, height, width = images.shape[1:]
    if not normalize:
        mean, std = [0.0] * channels, [1.0] * channels
    scale = [1 / (peak * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]

    def split(images: Tensor, labels: Tensor, augmentation: Augmentation | None = None) -> MemoryImages:
        return MemoryImages(
            images, labels, scale=scale, shift=shift, device=device, augmentation=augmentation
        )

    kept, held = split_holdout(len(images), holdout)
    evals: dict[str, Split] = {"test": split(*test)}
    if len(held):
        evals = {"val": split(images[held], labels[held]), **evals}
        images, labels = images[kept], labels[kept]
    return Data(
        train=split(images, labels, augmentation),
        evals=evals,
        facts={
            "num_classes": num_classes,
            "in_channels": channels,
            "image_size": height if height == width else (height, width),
        },
        kind="images",
    )


def split_holdout(samples: int, holdout: float) -> tuple[Tensor, Tensor]:
    """Numbers of the samples (int64, sorted) that stay in the training set, and of those that are held out.

    Raises:
        ConfigError: the holdout leaves one side empty.
    """
    held = round(samples * holdout)
    if holdout and not 0 < held < samples:
        raise ConfigError(f"data.holdout={holdout} leaves a side of {samples} training samples empty")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(HOLDOUT_SEED))
    return order[held:].sort().values, order[:held].sort().values
