"""What becomes of a batch of pictures on the device, from files or from memory: numbers, cutout, mixing."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import Batch
from trainer.data.images import cutout
from trainer.data.random import mix, uniform
from trainer.data.timm_augment import Mixing

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's training set
MIXING = 1
"""Makes of a sample's seed that of its pair."""
CUTOUT = 2
"""Makes of a batch's key that of its cutouts, as the key itself draws the crops of pictures in memory."""


@dataclass(frozen=True)
class Finish:
    """The last changes of a batch.

    Args:
        device: where the batch goes.
        normalize: by ImageNet's mean and deviation; otherwise inputs are in [0, 1].
        cutout: side of a square that is set to zero in training; 0: off.
        mixing: of pairs in training, or None.
    """

    device: torch.device
    normalize: bool
    cutout: int
    mixing: Mixing | None

    @property
    def group(self) -> int:
        """Samples that have to be in one batch."""
        return 1 if self.mixing is None else 2

    def draw(self, indices: Tensor, labels: Tensor, size: tuple[int, int], key: int | None) -> Tensor:
        """What a batch needs beside its images, int64 [B, 4]: label, the centre of the cutout, seed of the mixing.

        Args:
            indices: of the samples, int64 [B].
            labels: of the samples, int64 [B].
            size: height and width of the images.
            key: of the augmentation; None: there is none.
        """
        drawn = torch.full((len(indices), 3), -1)
        drawn[:, :2] = -self.cutout  # so far outside that nothing is cut
        if key is not None and self.cutout:
            drawn[:, :2] = torch.from_numpy((uniform(mix(key, CUTOUT), indices, 2).T * size).astype(np.int64))
        if key is not None and self.mixing:
            drawn[:, 2] = torch.tensor([mix(key, index, MIXING) >> 1 for index in indices.tolist()])
        return torch.cat([labels[:, None], drawn], dim=1)

    def normalized(self, images: Tensor) -> Tensor:
        """Values from 0 to 255, [..., 3, H, W], as the network's inputs, float32."""
        inputs = images.float().div_(255)
        if self.normalize:
            mean, std = (inputs.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            inputs.sub_(mean).div_(std)
        return inputs

    def __call__(self, images: Tensor, drawn: Tensor) -> Batch:
        """Makes a batch.

        Args:
            images: uint8 [B, 3, H, W], or float32 if they are normalised already.
            drawn: of `draw`, on the CPU.

        Returns:
            Inputs, float32 [B, 3, H, W], and labels, int64 [B], or after mixing shares of the classes, float32 [B, K].
        """
        inputs = images.to(self.device, non_blocking=True)
        if not inputs.is_floating_point():
            inputs = self.normalized(inputs)
        labels, row, column, _ = drawn.to(self.device, non_blocking=True).unbind(1)
        if self.cutout:
            inputs = cutout(inputs, self.cutout, row, column)
        seeds = drawn[::2, 3].tolist()
        if self.mixing and seeds[0] >= 0:
            return self.mixing(inputs, labels, seeds)
        return inputs, labels
