"""DenseNet for CIFAR-sized images: a 3x3 stem without pooling (arXiv 1608.06993)."""

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count

GROWTH = 32
DEPTHS = (6, 12, 24, 16)


class Dense(nn.Module):
    """Adds ``GROWTH`` channels, made by a 1x1 and a 3x3 convolution of all the channels so far."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_norm_conv(channels, 4 * GROWTH, 1), *_norm_conv(4 * GROWTH, GROWTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, channels + GROWTH, h, w]."""
        return torch.cat([self.branch(x), x], dim=1)


def _norm_conv(channels: int, width: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return [nn.BatchNorm2d(channels), nn.ReLU(), convolution]


@MODELS.register("densenet121_cifar")
def densenet121_cifar(
    *,
    num_classes: Count | None = None,
    in_channels: Count | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
) -> nn.Module:
    """Growth 32, blocks of 6, 12, 24 and 16 layers; 6,956,298 parameters for 10 classes of RGB images.

    Raises:
        ConfigError: the images are too small for its three halvings.
    """
    if min(height_width(image_size)) < 8:
        raise ConfigError("model=densenet121_cifar halves the image 3 times and needs 8 pixels a side")
    channels = 2 * GROWTH
    layers: list[nn.Module] = [
        nn.Conv2d(required_from_data("in_channels", in_channels), channels, 3, padding=1, bias=False)
    ]
    for i, depth in enumerate(DEPTHS):
        if i > 0:  # between blocks: half the channels, half the image
            layers += [*_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        layers += [Dense(channels + GROWTH * j) for j in range(depth)]
        channels += GROWTH * depth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]  # [B, channels]
    return nn.Sequential(*layers, nn.Linear(channels, required_from_data("num_classes", num_classes)))
