"""Pictures of one size that are decoded once, lie on the device, and are augmented in whole batches."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import Batch, Split
from trainer.data.finish import Finish
from trainer.data.machine import cores_per_rank, free_memory
from trainer.data.pictures import Pictures
from trainer.data.random import uniform
from trainer.errors import DataError
from trainer.formatting import memory

RATIO = 3 / 4, 4 / 3
"""Of a crop's width to its height, as in torchvision's RandomResizedCrop."""
ATTEMPTS = 10
"""To find a crop that fits into the picture, as there."""
INSTEAD = "leave data.cache at none"


class CachedImages(Split):
    """Pictures on the device.

    Args:
        images: uint8 [N, 3, H, W].
        labels: int64 [N].
        size: height and width of the inputs.
        min_scale: least share of a picture's area that a crop shows in training.
        flip: mirrors left and right with probability 1/2 in training.
        centre: what evaluation sees of pictures, from uint8 [B, 3, H, W] to uint8 [B, 3, size, size].
        finish: makes the batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        size: int,
        min_scale: float,
        flip: bool,
        centre: Callable[[Tensor], Tensor],
        finish: Finish,
    ) -> None:
        self.images = images
        self.labels = labels
        self.size = size
        self.min_scale = min_scale
        self.flip = flip
        self.centre = centre
        self.finish = finish
        self.group = finish.group

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Crops, resizes and mirrors pictures at once; without a key they are the same as if they were read."""
        images = self.images.index_select(0, indices.to(self.images.device))
        if key is None:
            images = self.centre(images)
        else:
            height, width = images.shape[-2:]
            crops = draw_crops(indices, key, height, width, self.min_scale)
            if not self.flip:
                crops[4] = 0
            images = self.finish.normalized(resized_crops(images, crops.to(images.device), self.size))
        size = (self.size, self.size)
        return self.finish(images, self.finish.draw(indices, self.labels[indices], size, key))


def draw_crops(indices: Tensor, key: int, height: int, width: int, min_scale: float) -> Tensor:
    """Draws crops as torchvision's RandomResizedCrop does, and whether they are mirrored.

    Args:
        indices: of the samples, int64 [B].
        key: of the augmentation.
        height, width: of the pictures.
        min_scale: least share of their area.

    Returns:
        float32 [5, B]: top, left, height, width, and 1 where it is to be mirrored.
    """
    drawn = uniform(key, indices, 2 * ATTEMPTS + 3)
    areas = (min_scale + (1 - min_scale) * drawn[:ATTEMPTS]) * (height * width)
    low, high = map(math.log, RATIO)
    ratios = np.exp(low + (high - low) * drawn[ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = np.round(np.sqrt(areas * ratios)), np.round(np.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.argmax(0), np.arange(len(indices))
    # where none fits, the largest in the middle whose sides are no more unequal than is allowed
    most = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    found = fits.any(0)
    h, w = (np.where(found, sizes[first], size) for sizes, size in zip((heights, widths), most, strict=True))
    spare = np.stack([height - h, width - w])
    top, left = np.floor(np.where(found, drawn[2 * ATTEMPTS : 2 * ATTEMPTS + 2] * (spare + 1), spare / 2))
    return torch.from_numpy(np.stack([top, left, h, w, drawn[-1] < 0.5])).float()


def resized_crops(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Cuts a crop from each picture and resizes it, bilinearly and with antialiasing.

    Args:
        images: uint8 [B, C, H, W].
        crops: of `draw_crops`, on the same device.
        size: height and width of the result.

    Returns:
        float32 [B, C, size, size], from 0 to 255.
    """
    batch, channels, height, width = images.shape
    top, left, h, w, mirrored = crops
    columns = resizing(left, w, width, size, mirrored).transpose(1, 2)  # [B, W, size]
    rows = resizing(top, h, height, size, torch.zeros_like(mirrored))[:, None]  # [B, 1, size, H]
    narrow = torch.bmm(images.float().view(batch, channels * height, width), columns)
    return rows @ narrow.view(batch, channels, height, size)


def resizing(start: Tensor, extent: Tensor, pixels: int, size: int, mirrored: Tensor) -> Tensor:
    """Matrices that resize a stretch of pixels, each output a mean with weights of a triangle around its place.

    The triangle is as wide as an output's share of the stretch and at least one pixel to each side, as in PIL's and
    torch's antialiased bilinear resizing.

    Args:
        start, extent: first pixel and length of the stretches, float32 [B].
        pixels: of which they are a part.
        size: of the outputs.
        mirrored: 1 where outputs come in the opposite order, float32 [B].

    Returns:
        float32 [B, size, pixels].
    """
    start, extent, mirrored = (values[:, None] for values in (start, extent, mirrored))
    places = torch.arange(size, device=start.device) + 0.5
    scale = extent / size
    centres = start + (places + mirrored * (size - 2 * places)) * scale  # [B, size]
    middles = torch.arange(pixels, device=start.device) + 0.5
    distances = (middles - centres[:, :, None]).abs_().div_(scale.clamp(min=1)[:, :, None])
    inside = (middles > start) & (middles < start + extent)  # [B, pixels]
    weights = distances.neg_().add_(1).clamp_(min=0).mul_(inside[:, None])
    return weights.div_(weights.sum(-1, keepdim=True))


def decode_all(splits: list[Pictures], device: torch.device) -> list[Tensor]:
    """Decodes all pictures of some splits: uint8 [N, 3, H, W] on the device, of each.

    Raises:
        DataError: pictures differ in size, cannot be decoded, or do not fit into the free memory.
    """
    shape = splits[0].decode(0).shape
    needed = sum(map(len, splits)) * shape.numel()
    free = free_memory(device)
    if free is not None and needed > free:
        raise DataError(
            f"data.cache=memory needs {memory(needed / 2**20)} for {sum(map(len, splits)):,} pictures, and "
            f"{memory(free / 2**20)} are free for each rank: {INSTEAD}"
        )
    return [decode_split(pictures, shape).to(device) for pictures in splits]


def decode_split(pictures: Pictures, shape: torch.Size) -> Tensor:
    """Decodes all pictures of a split, by a thread for each core: uint8 [N, *shape]."""
    images = torch.empty(len(pictures), *shape, dtype=torch.uint8)

    def decode(index: int) -> None:
        image = pictures.decode(index)
        if image.shape != shape:
            sizes = [f"{found[2]} x {found[1]}" for found in (image.shape, shape)]
            raise DataError(
                f"data.cache=memory needs pictures of one size, but {pictures.name(index)} has {sizes[0]} pixels "
                f"instead of {sizes[1]}: {INSTEAD}"
            )
        images[index] = image

    pool = ThreadPoolExecutor(cores_per_rank())
    try:
        for _ in pool.map(decode, range(len(pictures))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images
