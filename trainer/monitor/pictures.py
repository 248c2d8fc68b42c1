"""Batches of images as one picture."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

# small images are enlarged to about SIDE pixels; those with a caption to be read are fewer and larger
IMAGES, COLUMNS, SIDE = 32, 8, 64
CAPTIONED_COLUMNS, CAPTIONED_SIDE, CAPTION = 6, 96, 20
RIGHT, WRONG = (0, 130, 60), (205, 30, 30)


def grid(images: Tensor) -> Tensor:
    """The first images of a batch [N, C, h, w] side by side, [C, H, W]; their least value is 0 and their largest 1.

    Small images are enlarged without smoothing, so that a person sees their pixels.
    """
    return side_by_side(F.pad(enlarged(rescaled(images[:IMAGES]), SIDE), (1, 1, 1, 1), value=1.0), COLUMNS)


def predicted_grid(images: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
    """Images side by side, [3, H, W] in 0 to 1, each below its predicted class: green, or red with the true class.

    Args:
        images: [N, C, h, w], C = 1 or 3, in any range.
        predicted, targets: classes, int64 [N].
    """
    images = enlarged(rescaled(images), CAPTIONED_SIDE)
    images = images.expand(-1, 3, -1, -1)  # [N, 3, h, w]
    captions = [
        caption(prediction, target, images.shape[-1])
        for prediction, target in zip(predicted.tolist(), targets.tolist(), strict=True)
    ]
    return side_by_side(
        F.pad(torch.cat([torch.stack(captions), images], 2), (2, 2, 2, 2), value=1.0), CAPTIONED_COLUMNS
    )


def caption(prediction: int, target: int, width: int) -> Tensor:
    """The predicted class, and the true one if it differs, in white on green or red: [3, CAPTION, width] in 0 to 1."""
    right = prediction == target
    strip = Image.new("RGB", (width, CAPTION), RIGHT if right else WRONG)
    text = str(prediction) if right else f"{prediction}, is {target}"
    ImageDraw.Draw(strip).text((3, 1), text, fill="white", font=ImageFont.load_default(CAPTION - 4))
    return torch.from_numpy(np.array(strip)).movedim(-1, 0).float() / 255


def rescaled(images: Tensor) -> Tensor:
    """Images on the CPU, float32, linearly rescaled so that their least value is 0 and their largest 1."""
    images = images.detach().float().cpu()
    low, high = images.aminmax()
    return (images - low) / (high - low).clamp_min(1e-12)


def enlarged(images: Tensor, side: int) -> Tensor:
    """Images [N, C, h, w] with every pixel repeated to a square, as often as fits into a width of ``side``."""
    times = max(1, side // images.shape[-1])
    return images.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


def side_by_side(images: Tensor, columns: int) -> Tensor:
    """Images [N, C, h, w] in rows of ``columns`` as one, [C, H, W]; the last row is filled up with white."""
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns), value=1.0)
    rows = images.unflatten(0, (-1, columns))  # [rows, columns, C, h, w]
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
