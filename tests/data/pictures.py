"""Folders of small pictures."""

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, number: int, mode: str = "RGB") -> None:
    """A picture of 30 x 24 random pixels; its suffix says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def cats_and_dogs(root: Path, train: int = 80, val: int = 10) -> Path:
    """root/train and root/val with so many pictures in each of two classes."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                write(root / part / name / f"{number}.jpg", 1000 * label + number)
    return root
