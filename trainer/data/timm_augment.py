"""The augmentation of timm (pytorch-image-models), by its own code: policies, random erasing, mixup and cutmix.

timm draws from the global generators of Python, NumPy and torch. They are seeded for each sample, or pair of samples,
and put back, so that a sample is the same whoever makes it, and whatever was made before.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.crops import Crops, Transform
from trainer.errors import ConfigError, MissingExtra, one_line


def timm_transform(
    crops: Crops,
    auto_augment: str | None,
    random_erasing: float,
    mean: list[float],
    normalize: Callable[[Tensor], Tensor],
) -> Transform:
    """What timm's training does to a picture: a random crop and flip, a policy or else a change of colours, erasing.

    Args:
        crops: size of the result, scale and flip.
        auto_augment: as in timm, such as ``rand-m9-mstd0.5-inc1``, ``original`` or ``augmix-m3-w3``; None: brightness,
            contrast and saturation change by up to 0.4.
        random_erasing: the probability with which a rectangle is filled with noise, after normalisation.
        mean: per channel in [0, 1], with which the policies fill what they uncover.
        normalize: from uint8 to float32; used before erasing.

    Returns:
        A transform to uint8 [3, size, size], or with erasing to normalised float32.

    Raises:
        MissingExtra: timm is not installed.
        ConfigError: timm knows no such policy.
    """
    try:
        from timm.data import create_transform
        from timm.data.random_erasing import RandomErasing
    except ImportError:
        raise MissingExtra("data.augment=timm", "timm", "zoo") from None
    from torchvision.transforms.functional import to_pil_image

    try:
        change = create_transform(
            crops.size,
            is_training=True,
            use_prefetcher=True,  # which leaves the result in bytes
            scale=(crops.min_scale, 1.0),
            hflip=0.5 if crops.flip else 0.0,
            auto_augment=auto_augment,
            interpolation="random",
            mean=tuple(mean),
        )
    except Exception as error:  # of its parser
        raise ConfigError(
            f"data.auto_augment={auto_augment} is not understood by timm ({one_line(error)}): "
            "it is such as rand-m9-mstd0.5-inc1, original or augmix-m3-w3"
        ) from error
    erase = RandomErasing(random_erasing, mode="pixel", device="cpu")

    def transform(image: Tensor, seed: int) -> Tensor:
        with generators_kept():
            seed_generators(seed)
            changed: Tensor = change(to_pil_image(image))
            return erase(normalize(changed)) if random_erasing else changed

    return transform


class Mixing:
    """Mixup and cutmix of the pairs of a batch: samples 0 and 1, 2 and 3, and so on, as timm's mode ``pair`` does.

    Which samples are a pair, and how they are mixed, is then the same on any number of ranks.

    Args:
        mixup, cutmix: the parameter of the beta distribution from which shares are drawn; 0: off. Of both, a pair
            gets one, each with probability 1/2.
        num_classes: K.

    Raises:
        MissingExtra: timm is not installed.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        try:
            from timm.data import Mixup
        except ImportError:
            raise MissingExtra(f"data.{'mixup' if mixup else 'cutmix'}", "timm", "zoo") from None
        # a pair is a batch of two; the loss smooths labels
        self.mix: Any = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, inputs: Tensor, labels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Mixes pairs, in place.

        Args:
            inputs: float32 [B, C, H, W]; B is even.
            labels: int64 [B].
            seeds: of the pairs, [B / 2], each in [0, 2**64).

        Returns:
            The inputs, and the share of each class in them, float32 [B, K].
        """
        shares = []
        with generators_kept():
            for pair, seed in enumerate(seeds):
                seed_generators(seed)
                place = slice(2 * pair, 2 * pair + 2)
                shares.append(self.mix(inputs[place], labels[place])[1])
        return inputs, torch.cat(shares)


def seed_generators(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch, the last one on the CPU only."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators back to where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
