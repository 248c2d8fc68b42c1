"""The embedded set: 1797 handwritten digits of 8 x 8 pixels; digits.md says where they are from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Data
from trainer.data.images import Augmentation, memory_images
from trainer.options import Natural

FILE = Path(__file__).with_name("digits.npz")
SPLIT_SEED = 0
TEST_PER_CLASS = 36


@DATA.register("digits")
def digits(
    device: torch.device,
    seed: int,
    *,
    normalize: bool = True,
    crop_padding: Natural = 1,
    flip: bool = False,
    cutout: Natural = 0,
) -> Data:
    """1437 training and 360 test images, [1, 8, 8], in 10 classes; the split is always the same."""
    with np.load(FILE) as file:
        images = torch.from_numpy(file["images"]).unsqueeze(1)  # uint8 [1797, 1, 8, 8], values 0 to 16
        labels = torch.from_numpy(file["labels"]).long()
    train, test = stratified_split(labels, TEST_PER_CLASS)
    return memory_images(
        (images[train], labels[train]),
        (images[test], labels[test]),
        num_classes=10,
        mean=[0.3060],
        std=[0.3765],
        peak=16,
        normalize=normalize,
        augmentation=Augmentation(crop_padding, flip, cutout),
        device=device,
        classes=[str(digit) for digit in range(10)],
    )


def stratified_split(labels: Tensor, per_class: int) -> tuple[Tensor, Tensor]:
    """Sample numbers (int64, sorted) of two parts; the second has the same number of every class."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    first, second = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        first.append(members[per_class:])
        second.append(members[:per_class])
    return torch.cat(first).sort().values, torch.cat(second).sort().values
