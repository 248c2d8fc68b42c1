"""The part of a picture that is shown: a random crop in training, the centre in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Transform = Callable[[Tensor, int], Tensor]
"""Changes a picture, uint8 [3, H, W], at random; the second argument is a seed in [0, 2**64)."""


@dataclass(frozen=True)
class Crops:
    """What is shown of pictures."""

    size: int
    """Height and width of inputs."""
    resize: int
    """The shorter side in evaluation, before the crop at the centre; at least ``size``."""
    min_scale: float
    """Least share of the picture's area in a random crop, in (0, 1]."""
    flip: bool
    """Mirrors left and right with probability 1/2, in training."""

    def resized(self, images: Tensor) -> Tensor:
        """Pictures with that shorter side: uint8 [..., 3, H, W], of another height and width."""
        from torchvision.transforms import v2  # slow to import, and most runs do without it

        resized: Tensor = v2.functional.resize(images, [self.resize])
        return resized

    def centre(self, images: Tensor) -> Tensor:
        """What evaluation sees of pictures: uint8 [..., 3, H, W] to uint8 [..., 3, size, size]."""
        from torchvision.transforms import v2

        centre: Tensor = v2.functional.center_crop(self.resized(images), [self.size])
        return centre

    def random(self) -> Transform:
        """The augmentation of torchvision's recipes: uint8 [3, H, W] to uint8 [3, size, size]."""
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(self.size, scale=(self.min_scale, 1.0))
        change = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)])

        def transform(image: Tensor, seed: int) -> Tensor:
            state = torch.get_rng_state()
            torch.default_generator.manual_seed(
                seed
            )  # torch.manual_seed would seed the devices' generators, too
            try:
                changed: Tensor = change(image)
                return changed
            finally:
                torch.set_rng_state(state)

        return transform
