"""Picture files, decoded."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.errors import DataError, one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises for a file that is missing, no picture, damaged, or much larger when it is decoded."""


def decode(path: str, mode: str = "RGB") -> Image.Image:
    """The picture in a file, in a mode of PIL's.

    Raises:
        DataError: the file is missing, no picture, damaged, suspiciously large, or of more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # PIL would clip to white or black
                raise ValueError(f"mode {image.mode} has more than 8 bits a channel, convert it to 8")
            return image.convert(mode)
    except UNDECODABLE as error:
        raise DataError(f"{path} cannot be decoded ({one_line(error)}): replace or remove it") from None


def decode_all(paths: Sequence[Path], mode: str, size: tuple[int, int]) -> Tensor:
    """The pictures in files, each scaled to one height and width: float32 [B, C, H, W] in [0, 1].

    Raises:
        DataError: as of `decode`.
    """
    height, width = size
    pictures = [decode(str(path), mode).resize((width, height), Image.Resampling.BILINEAR) for path in paths]
    values = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    values = values.view(len(paths), height, width, -1)  # uint8 [B, H, W, C]
    return values.permute(0, 3, 1, 2).float() / 255
