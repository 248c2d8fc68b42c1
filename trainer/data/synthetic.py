"""Made-up sets of any size that a model can learn: to try things out, and to time them."""

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Data
from trainer.data.images import Augmentation, memory_images
from trainer.data.tokens import PackedTokens
from trainer.options import Count, Natural, NonNegative

DATA_SEED = 0  # not the run's: all runs share the set
CHAINS = 64


@DATA.register("synthetic_images")
def synthetic_images(
    device: torch.device,
    seed: int,
    *,
    train_samples: Count = 10_000,
    test_samples: Count = 2_000,
    num_classes: Count = 10,
    channels: Count = 3,
    image_size: Count = 32,
    noise: NonNegative = 1.0,
    normalize: bool = True,
    crop_padding: Natural = 0,
    flip: bool = False,
    cutout: Natural = 0,
) -> Data:
    """Each class is one random pattern; an image is its class's pattern under Gaussian noise.

    Args:
        noise: standard deviation of the noise, where that of the patterns is 1.
    """
    rng = np.random.default_rng(DATA_SEED)
    patterns = rng.standard_normal((num_classes, channels, image_size, image_size), dtype=np.float32)
    contrast = 32 / (1 + noise)

    def draw(samples: int) -> tuple[Tensor, Tensor]:
        labels = rng.integers(num_classes, size=samples)
        images = np.empty((samples, *patterns.shape[1:]), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            values = patterns[label] + noise * rng.standard_normal(image.shape, dtype=np.float32)
            image[:] = np.clip(128 + contrast * values, 0, 255)
        return torch.from_numpy(images), torch.from_numpy(labels)

    return memory_images(
        draw(train_samples),
        draw(test_samples),
        num_classes=num_classes,
        mean=[0.5] * channels,
        std=[contrast * (1 + noise**2) ** 0.5 / 255] * channels,
        normalize=normalize,
        augmentation=Augmentation(crop_padding, flip, cutout),
        device=device,
    )


@DATA.register("synthetic_tokens")
def synthetic_tokens(
    device: torch.device,
    seed: int,
    *,
    train_samples: Count = 4_096,
    val_samples: Count = 256,
    vocab_size: Count = 64,
    context_length: Count = 64,
    branching: Count = 4,
) -> Data:
    """A Markov chain: each token has a few successors, all equally likely.

    A model can reach a loss of about log(branching), from log(vocab_size) at the start.
    """
    rng = np.random.default_rng(DATA_SEED)
    successors = rng.integers(vocab_size, size=(vocab_size, branching))

    def draw(samples: int) -> PackedTokens:
        length = -(-(samples * context_length + 1) // CHAINS)
        tokens = np.empty(
            (length, CHAINS), dtype=np.int32
        )  # many chains at a time, one after the other at last
        tokens[0] = rng.integers(vocab_size, size=CHAINS)
        for now, choice in enumerate(rng.integers(branching, size=(length - 1, CHAINS))):
            tokens[now + 1] = successors[tokens[now], choice]
        return PackedTokens(tokens.T.reshape(-1)[: samples * context_length + 1], context_length, device)

    return Data(
        train=draw(train_samples),
        evals={"val": draw(val_samples)},
        model_defaults={"vocab_size": vocab_size, "context_length": context_length},
        kind="tokens",
    )
