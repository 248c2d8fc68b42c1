"""DenseNet for CIFAR-sized images: a 3x3 stem without pooling (arXiv 1608.06993)."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import MODELS, height_width, required_from_data, reset_convolutions
from trainer.models.pretrained import load_by_position
from trainer.options import Count

DEPTHS = (6, 12, 24, 16)


class Dense(nn.Module):
    """Adds ``growth`` channels, made by a 1x1 and a 3x3 convolution of all the channels so far."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_norm_conv(channels, 4 * growth, 1), *_norm_conv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, channels + growth, h, w]."""
        return torch.cat([x, self.branch(x)], dim=1)


def _norm_conv(channels: int, width: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return [nn.BatchNorm2d(channels), nn.ReLU(), convolution]


@MODELS.register("densenet121_cifar")
def densenet121_cifar(
    *,
    growth: Count = 32,
    init: Literal["kaiming", "torch"] = "kaiming",
    pretrained: bool = False,
    num_classes: Count | None = None,
    in_channels: Count | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
) -> nn.Module:
    """Blocks of 6, 12, 24 and 16 layers; 6,956,298 parameters for 10 classes of RGB images.

    Args:
        growth: channels that each layer adds.
        init: of the convolutions: N(0, 2 / fan-in), or torch's default.
        pretrained: start from torchvision's weights for ImageNet, but for stem and classifier.

    Raises:
        ConfigError: the images are too small for its three halvings, or the weights cannot be had or do not fit.
    """
    if min(height_width(image_size)) < 8:
        raise ConfigError("model=densenet121_cifar halves the image 3 times and needs 8 pixels a side")
    channels = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(required_from_data("in_channels", in_channels), channels, 3, padding=1, bias=False)
    ]
    for i, depth in enumerate(DEPTHS):
        if i > 0:  # between blocks: half the channels, half the image
            layers += [*_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        layers += [Dense(channels + growth * j, growth) for j in range(depth)]
        channels += growth * depth
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]  # [B, channels]
    model = nn.Sequential(*layers, nn.Linear(channels, required_from_data("num_classes", num_classes)))
    if init == "torch":
        reset_convolutions(model)
    if pretrained:
        load_by_position(
            model[1:-1].state_dict(), "densenet121", r"features\.conv0|features\.norm0|classifier"
        )
    return model
