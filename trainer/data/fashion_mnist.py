"""Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28, from Debian's package or torchvision."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Data
from trainer.data.download import download
from trainer.data.images import Augmentation, memory_images
from trainer.errors import DataError
from trainer.options import MAY_DIFFER, Natural

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = Path("FashionMNIST", "raw")
PARTS = ("train", "t10k")
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
LARGEST = 2**30
"""Bytes of a file that are read at most: Fashion-MNIST's largest has 47 million."""


@DATA.register("fashion_mnist")
def fashion_mnist(
    device: torch.device,
    seed: int,
    *,
    root: Annotated[str | None, MAY_DIFFER] = None,
    download: Annotated[bool, MAY_DIFFER] = False,
    normalize: bool = True,
    crop_padding: Natural = 0,
    flip: bool = False,
    cutout: Natural = 0,
) -> Data:
    """Images [1, 28, 28] in 10 classes."""
    folder = _find(root, download)
    train, test = (_load(folder, part) for part in PARTS)
    return memory_images(
        train,
        test,
        num_classes=10,
        mean=[0.2860],
        std=[0.3530],
        normalize=normalize,
        augmentation=Augmentation(crop_padding, flip, cutout),
        device=device,
        classes=CLASSES,
    )


def _find(root: str | None, fetch: bool) -> Path:
    """The folder of the four files."""
    home = Path(root or "data")
    places = [home, home / TORCHVISION] + ([DEBIAN] if root is None else [])
    for place in places:
        if all(path.is_file() for part in PARTS for path in _files(place, part)):
            return place
    if not fetch:
        raise DataError(
            f"no Fashion-MNIST in {' or '.join(map(str, places))}: apt-get install dataset-fashion-mnist "
            f"and leave data.root out, or data.download=true fetches it into {home}"
        )
    from torchvision.datasets import FashionMNIST  # slow to import, and most runs do without it

    download(FashionMNIST, home, TORCHVISION.parts[0])
    return home / TORCHVISION


def _files(folder: Path, part: str) -> tuple[Path, Path]:
    return folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"


def _load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N, 1, 28, 28], and labels, uint8 [N]."""
    images, labels = map(read_idx, _files(folder, part))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{folder} holds {part} images {list(images.shape)} and labels {list(labels.shape)}")
    return images.unsqueeze(1), labels


def read_idx(path: Path) -> Tensor:
    """A gzipped array of bytes in the IDX format: 0, 0, type, dimensions, each size in 4 bytes, the values.

    The file's checksum, which gzip has written, is verified.

    Raises:
        DataError: the file is damaged, or larger than `LARGEST` when it is unpacked.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): download it again") from None
    if len(content) > LARGEST:
        raise DataError(f"{path} has more than {LARGEST >> 30} GiB when it is unpacked: download it again")
    dimensions = content[3] if content[:3] == b"\0\0\x08" else 0  # 8: unsigned bytes
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if not dimensions or not len(content) == start + math.prod(shape) > start:
        raise DataError(f"{path} is not a complete IDX file of bytes: download it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
