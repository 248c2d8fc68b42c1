"""Pictures of one size that are decoded once, lie on the device, and are augmented in whole batches."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.base import Batch, Split
from trainer.data.crops import Crops
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
        crops: what is shown of them.
        finish: makes the batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, crops: Crops, finish: Finish) -> None:
        self.images = images
        self.labels = labels
        self.crops = crops
        self.finish = finish
        self.group = finish.group

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Crops, resizes and mirrors pictures at once; without a key they are the same as if they were read."""
        images = self.images.index_select(0, indices.to(self.images.device))
        if key is None:
            images = self.crops.centre(images)
        else:
            drawn = draw_crops(indices, key, images.shape[-2], images.shape[-1], self.crops)
            images = self.finish.normalized(resized_crops(images, drawn.to(images.device), self.crops.size))
        size = (self.crops.size, self.crops.size)
        return self.finish(images, self.finish.draw(indices, self.labels[indices], size, key))


def draw_crops(indices: Tensor, key: int, height: int, width: int, crops: Crops) -> Tensor:
    """Draws crops as torchvision's RandomResizedCrop does, and whether they are mirrored.

    Args:
        indices: of the samples, int64 [B].
        key: of the augmentation.
        height, width: of the pictures.
        crops: the least share of their area, and whether some are mirrored.

    Returns:
        float32 [5, B]: top, left, height, width, and 1 where it is to be mirrored.
    """
    drawn = uniform(key, indices, 2 * ATTEMPTS + 3)
    areas = (crops.min_scale + (1 - crops.min_scale) * drawn[:ATTEMPTS]) * (height * width)
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
    mirrored = (drawn[-1] < 0.5) & crops.flip
    return torch.from_numpy(np.stack([top, left, h, w, mirrored])).float()


def resized_crops(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Cuts a crop from each picture and resizes it bilinearly, as torchvision does where it enlarges.

    Args:
        images: uint8 [B, C, H, W].
        crops: of `draw_crops`, on the same device.
        size: height and width of the result.

    Returns:
        float32 [B, C, size, size], from 0 to 255.
    """
    height, width = images.shape[-2:]
    top, left, h, w, mirrored = crops[:, :, None]  # [B, 1] each
    places = torch.arange(size, device=images.device) + 0.5
    columns = sources(left, w, width, places + mirrored * (size - 2 * places), size)
    rows = sources(top, h, height, places, size)
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    return F.grid_sample(images.float(), grid, align_corners=False)


def sources(start: Tensor, extent: Tensor, pixels: int, places: Tensor, size: int) -> Tensor:
    """Where in a picture the pixels of a resized stretch of it come from, and not from beyond that stretch.

    Args:
        start, extent: first pixel and length of the stretches, float32 [B, 1].
        pixels: of the picture.
        places: the middles of the resized pixels, in (0, size), [size] or [B, size].
        size: of the resized stretch.

    Returns:
        float32 [B, size], from -1 at the picture's one edge to 1 at the other.
    """
    inside = torch.minimum(torch.maximum(start + places * (extent / size), start + 0.5), start + extent - 0.5)
    return inside * (2 / pixels) - 1


def cached_images(splits: list[Pictures], crops: Crops, finish: Finish) -> list[CachedImages]:
    """Decodes all pictures of some splits onto the device; of larger ones a copy with the shorter side ``resize``.

    Raises:
        DataError: pictures differ in size, cannot be decoded, or do not fit into the free memory.
    """
    first = splits[0].decode(0)
    shrink = crops.resized if min(first.shape[1:]) > crops.resize else lambda image: image
    needed = sum(map(len, splits)) * shrink(first).numel()
    free = free_memory(finish.device)
    if free is not None and needed > free:
        raise DataError(
            f"data.cache=memory needs {memory(needed / 2**20)} for {sum(map(len, splits)):,} pictures, and "
            f"{memory(free / 2**20)} are free for each rank: {INSTEAD}"
        )
    kept = [decode_split(pictures, first.shape, shrink).to(finish.device) for pictures in splits]
    return [
        CachedImages(images, pictures.labels, crops, finish)
        for images, pictures in zip(kept, splits, strict=True)
    ]


def decode_split(pictures: Pictures, shape: torch.Size, shrink: Callable[[Tensor], Tensor]) -> Tensor:
    """Decodes all pictures of a split, of this shape before they shrink, by a thread for each core: uint8 [N, 3, H, W].

    Raises:
        DataError: a picture has another shape, or cannot be decoded.
    """
    kept = shrink(torch.empty(shape, dtype=torch.uint8)).shape
    images = torch.empty(len(pictures), *kept, dtype=torch.uint8)

    def decode(index: int) -> None:
        image = pictures.decode(index)
        if image.shape != shape:
            sizes = [f"{found[2]} x {found[1]}" for found in (image.shape, shape)]
            raise DataError(
                f"data.cache=memory needs pictures of one size, but {pictures.name(index)} has {sizes[0]} pixels "
                f"instead of {sizes[1]}: {INSTEAD}"
            )
        images[index] = shrink(image)

    pool = ThreadPoolExecutor(cores_per_rank())
    try:
        for _ in pool.map(decode, range(len(pictures))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images
