"""Encoded pictures by number, in files or in a pack, and what their decoding gives."""

import io
import os
import struct
from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from trainer.data.class_folders import Sample
from trainer.errors import DataError, one_line

UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL raises for what is no picture, damaged, or much larger when it is decoded."""


class Pictures(ABC):
    """Numbered pictures with their labels, int64 [N]."""

    labels: Tensor

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
        """A picture in red, green and blue: uint8 [3, H, W].

        Raises:
            DataError: it cannot be read, is no picture, damaged, suspiciously large, or of more than 8 bits a channel.
        """
        content = self.read(index)
        try:
            return decode(content)
        except UNDECODABLE as error:
            unknown = isinstance(error, UnidentifiedImageError)  # whose message names a place in memory
            why = "it is in no format that PIL knows" if unknown else one_line(error)
            raise DataError(f"{self.name(index)} cannot be decoded ({why}): replace or remove it") from None


class PictureFiles(Pictures):
    """Pictures in files of their own.

    Args:
        samples: their paths and labels.
    """

    def __init__(self, samples: list[Sample]) -> None:
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


def decode(content: bytes) -> Tensor:
    """The picture that these bytes encode: uint8 [3, H, W].

    By PIL, since torchvision's decoders are deprecated. What follows is quicker on tensors than on PIL's pictures.

    Raises:
        Exception: one of `UNDECODABLE`.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # PIL would clip to white or black
            raise ValueError(f"mode {picture.mode} has more than 8 bits a channel, convert it to 8")
        coloured = picture if picture.mode == "RGB" else picture.convert("RGB")
        pixels = np.array(coloured)  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1)
