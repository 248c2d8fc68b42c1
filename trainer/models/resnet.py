"""Residual networks for CIFAR-sized images: a 3x3 stem without pooling (arXiv 1512.03385)."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from trainer.models.base import MODELS, required_from_data, reset_convolutions
from trainer.models.pretrained import load_by_position
from trainer.options import Count


class Basic(nn.Module):
    """Two 3x3 convolutions, added to a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv_norm(channels, width, 3, stride), nn.ReLU(), _conv_norm(width, width, 3, 1)
        )
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, width, h / stride, w / stride]."""
        return (self.branch(x) + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 added to a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _conv_norm(channels, width, 1, 1),
            nn.ReLU(),
            _conv_norm(width, width, 3, stride),
            nn.ReLU(),
            _conv_norm(width, 4 * width, 1, 1),
        )
        self.shortcut = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, 4 * width, h / stride, w / stride]."""
        return (self.branch(x) + self.shortcut(x)).relu()


def _conv_norm(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # arXiv 1502.01852
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    same = channels == width and stride == 1
    return nn.Identity() if same else _conv_norm(channels, width, 1, stride)


class ResNet(nn.Module):
    """A 3x3 stem, four stages of blocks, of which the last three halve the image, mean, classifier.

    Args:
        width: channels of the stem and of the convolutions of the first stage; it doubles with each stage.
        init: of the convolutions: N(0, 2 / fan-out), or torch's default.
        pretrained: start from torchvision's weights for ImageNet, but for stem and classifier.

    Raises:
        ConfigError: the weights cannot be had, or do not fit the width.
    """

    block: ClassVar[type[Basic] | type[Bottleneck]]
    depths: ClassVar[tuple[int, ...]]
    arch: ClassVar[str]
    """What torchvision calls it."""

    def __init__(
        self,
        *,
        width: Count = 64,
        init: Literal["kaiming", "torch"] = "kaiming",
        pretrained: bool = False,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
    ) -> None:
        super().__init__()
        channels = width
        self.stem = nn.Sequential(
            _conv_norm(required_from_data("in_channels", in_channels), channels, 3, 1), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                blocks.append(self.block(channels, width * 2**stage, stride=2 if stage > 0 and i == 0 else 1))
                channels = width * 2**stage * self.block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, required_from_data("num_classes", num_classes))
        if init == "torch":
            reset_convolutions(self)
        if pretrained:
            load_by_position(self.blocks.state_dict(), self.arch, r"conv1\.|bn1\.|fc\.")

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.stem(images)  # [B, C, H, W] -> [B, width, H, W]
        x = self.blocks(x)  # [B, channels, H / 8, W / 8]
        return self.head(x.mean(dim=(2, 3)))  # [B, num_classes]


@MODELS.register("resnet18_cifar")
class ResNet18(ResNet):
    """11,173,962 parameters for 10 classes of RGB images."""

    block, depths, arch = Basic, (2, 2, 2, 2), "resnet18"


@MODELS.register("resnet34_cifar")
class ResNet34(ResNet):
    """21,282,122 parameters for 10 classes of RGB images."""

    block, depths, arch = Basic, (3, 4, 6, 3), "resnet34"


@MODELS.register("resnet50_cifar")
class ResNet50(ResNet):
    """23,520,842 parameters for 10 classes of RGB images."""

    block, depths, arch = Bottleneck, (3, 4, 6, 3), "resnet50"


@MODELS.register("resnet101_cifar")
class ResNet101(ResNet):
    """42,512,970 parameters for 10 classes of RGB images."""

    block, depths, arch = Bottleneck, (3, 4, 23, 3), "resnet101"
