"""MobileNetV3-Large for CIFAR-sized images: stem and second block do not halve the image (arXiv 1905.02244)."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from trainer.models.base import MODELS, required_from_data
from trainer.models.pretrained import load_by_position
from trainer.options import Count, Positive


class Row(NamedTuple):
    """A row of the paper's table 1."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


RE, HS = nn.ReLU, nn.Hardswish
ROWS = [
    Row(3, 16, 16, False, RE, 1),
    Row(3, 64, 24, False, RE, 1),  # of stride 2 for ImageNet
    Row(3, 72, 24, False, RE, 1),
    Row(5, 72, 40, True, RE, 2),
    Row(5, 120, 40, True, RE, 1),
    Row(5, 120, 40, True, RE, 1),
    Row(3, 240, 80, False, HS, 2),
    Row(3, 200, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 184, 80, False, HS, 1),
    Row(3, 480, 112, True, HS, 1),
    Row(3, 672, 112, True, HS, 1),
    Row(5, 672, 160, True, HS, 2),
    Row(5, 960, 160, True, HS, 1),
    Row(5, 960, 160, True, HS, 1),
]
STEM, LAST, HIDDEN = 16, 960, 1280


def conv_norm(channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, and a norm with the ε of torchvision's weights."""
    convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width, eps=1e-3))


class HardSigmoid(nn.Module):
    """As `nn.Hardsigmoid`, of which torch has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; from 0 at -3 to 1 at 3."""
        return functional.relu6(x + 3) / 6


class SqueezeExcitation(nn.Module):
    """Scales each channel by what two linear layers make of the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 4, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 4, channels, bias=False),
            HardSigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, channels, h, w]."""
        return x * self.gate(x.mean(dim=(2, 3)))[:, :, None, None]


class Block(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; added back where the shape is the same.

    Args:
        channels: of the input.
        row: the block's row, its widths scaled.
        dense: an ordinary convolution instead of the depthwise one.
    """

    def __init__(self, channels: int, row: Row, dense: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if row.expanded != channels:
            layers += [conv_norm(channels, row.expanded), row.activation()]
        groups = 1 if dense else row.expanded
        layers.append(conv_norm(row.expanded, row.expanded, row.kernel, row.stride, groups))
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expanded))
        layers += [row.activation(), conv_norm(row.expanded, row.out)]
        self.branch = nn.Sequential(*layers)
        self.is_residual = row.stride == 1 and row.out == channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, row.out, h / stride, w / stride]."""
        y = self.branch(x)
        return x + y if self.is_residual else y


@MODELS.register("mobilenetv3_cifar")
class MobileNetV3(nn.Module):
    """4,206,658 parameters for 10 classes of RGB images; ``dense`` 70,045,738.

    Args:
        width: multiplies the number of channels of all layers, which are then rounded to a multiple of 8.
        dense: ordinary instead of depthwise convolutions, as in the code that AdaFisher's authors released.
        pretrained: start from torchvision's weights for ImageNet, but for stem, squeeze-and-excitation and classifier.

    Raises:
        ConfigError: the weights cannot be had, or do not fit these options.
    """

    def __init__(
        self,
        *,
        width: Positive = 1.0,
        dense: bool = False,
        pretrained: bool = False,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, 8 * round(channels * width / 8))

        channels = scaled(STEM)
        self.stem = nn.Sequential(
            conv_norm(required_from_data("in_channels", in_channels), channels, 3), nn.Hardswish()
        )
        blocks: list[nn.Module] = []
        for row in ROWS:
            row = row._replace(expanded=scaled(row.expanded), out=scaled(row.out))
            blocks.append(Block(channels, row, dense))
            channels = row.out
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(conv_norm(channels, scaled(LAST)), nn.Hardswish())
        self.head = nn.Sequential(
            nn.Linear(scaled(LAST), scaled(HIDDEN), bias=False),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(scaled(HIDDEN), required_from_data("num_classes", num_classes)),
        )
        self._initialise()
        if pretrained:
            own = {**self.blocks.state_dict(prefix="blocks."), **self.last.state_dict(prefix="last.")}
            own = {name: value for name, value in own.items() if ".gate." not in name}
            load_by_position(own, "mobilenet_v3_large", r"features\.0\.|classifier|.*\.fc[12]\.")

    def _initialise(self) -> None:
        """N(0, 0.001) for linear layers; N(0, 2 / fan-out) for convolutions (arXiv 1502.01852)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.001)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.blocks(self.stem(images))  # [B, C, H, W] -> [B, 160, H / 8, W / 8]
        x = self.last(x).mean(dim=(2, 3))  # [B, 960]
        return self.head(x)  # [B, num_classes]
