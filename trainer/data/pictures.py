"""Encoded pictures by number, in files or in a pack, and what their decoding gives."""

import io
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from trainer.data.class_folders import Sample
from trainer.errors import DataError, one_line

UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises for what is no picture, damaged, or much larger when it is decoded."""


class Pictures(ABC):
    """Numbered pictures with their labels, int64 [N]."""

    labels: Tensor
    mode = "RGB"
    """PIL's, into which they are decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call a picture."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of a picture as it is stored.

        Raises:
            DataError: it cannot be read.
        """

    def decode(self, index: int) -> Tensor:
        """A picture: uint8 [channels of the mode, H, W].

        Raises:
            DataError: it cannot be read, is no picture, damaged, suspiciously large, or of more than 8 bits a channel.
        """
        content = self.read(index)
        try:
            return decode(content, self.mode)
        except UNDECODABLE as error:
            unknown = isinstance(error, UnidentifiedImageError)  # whose message names a place in memory
            why = "it is in no format that PIL knows" if unknown else one_line(error)
            raise DataError(f"{self.name(index)} cannot be decoded ({why}): replace or remove it") from None


class PictureFiles(Pictures):
    """Pictures in files of their own.

    Args:
        samples: their paths and labels.
        mode: PIL's, into which they are decoded.
    """

    def __init__(self, samples: Sequence[Sample], mode: str = "RGB") -> None:
        self.mode = mode
        # An array: a list's reference counts would have each worker process copy it, page by page.
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = torch.tensor([label for _, label in samples])

    def name(self, index: int) -> str:
        """Its path."""
        return os.fsdecode(self.paths[index])

    def read(self, index: int) -> bytes:
        """The content of its file."""
        path = self.name(index)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise DataError(f"{path} cannot be decoded ({one_line(error)}): replace or remove it") from None


def decode(content: bytes, mode: str = "RGB") -> Tensor:
    """The picture that these bytes encode: uint8 [channels of PIL's mode, H, W].

    By PIL, since torchvision's decoders are deprecated. What follows is quicker on tensors than on PIL's pictures.

    Raises:
        Exception: one of `UNDECODABLE`.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # PIL would clip to white or black
            raise ValueError(f"mode {picture.mode} has more than 8 bits a channel, convert it to 8")
        pixels = torch.from_numpy(np.array(picture if picture.mode == mode else picture.convert(mode)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)  # [H, W] or [H, W, C] -> [C, H, W]


def decode_all(paths: Sequence[Path], mode: str, size: tuple[int, int]) -> Tensor:
    """The pictures in files, each scaled to one height and width: float32 [B, C, H, W] in [0, 1].

    Raises:
        DataError: as of `Pictures.decode`.
    """
    pictures = PictureFiles([(path, 0) for path in paths], mode)
    scaled = [
        nn.functional.interpolate(pictures.decode(number)[None], size, mode="bilinear", antialias=True)
        for number in range(len(pictures))
    ]
    return torch.cat(scaled).float() / 255
