"""FocalNet for CIFAR-sized images: focal modulation in place of attention (arXiv 2203.11926)."""

from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.attention import feed_forward
from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count, Fraction

KERNELS = (3, 5)
"""Sides of the convolutions, one for each focal level."""


class Patches(nn.Module):
    """A 2x2 convolution with stride 2, and a norm."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, channels] -> [B, H / 2, W / 2, width]."""
        return self.norm(self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Modulation(nn.Module):
    """Multiplies each token by a gated sum of its contexts: ever larger surroundings, and at last all tokens.

    Args:
        width: of a token.
        dense: convolutions over all channels instead of one at a time.
    """

    def __init__(self, width: int, dense: bool) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width, 2 * width + len(KERNELS) + 1)
        groups = 1 if dense else width
        self.contexts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False), nn.GELU()
            )
            for kernel in KERNELS
        )
        self.activation = nn.GELU()
        self.mix = nn.Conv2d(width, width, 1)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        query, context, gates = self.project(x).split([self.width, self.width, len(KERNELS) + 1], dim=-1)
        context, gates = (
            context.permute(0, 3, 1, 2),
            gates.permute(0, 3, 1, 2),
        )  # [B, width, H, W], [B, levels + 1, H, W]
        gated = []
        for level, surroundings in enumerate(self.contexts):
            context = surroundings(context)
            gated.append(context * gates[:, level : level + 1])
        whole = self.activation(context.mean(dim=(2, 3), keepdim=True))  # [B, width, 1, 1]
        modulator = self.mix(sum(gated) + whole * gates[:, -1:])  # [B, width, H, W]
        return self.out(query * modulator.permute(0, 2, 3, 1))


class Block(nn.Module):
    """Focal modulation, then an MLP four times as wide, each on a normalised copy that is added back, or skipped."""

    def __init__(self, width: int, dense: bool, skipped: float) -> None:
        from torchvision.ops import StochasticDepth  # slow to import, and most runs do without it

        super().__init__()
        self.modulation_norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, dense)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, 4 * width)
        self.skip = StochasticDepth(skipped, "row")

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        x = x + self.skip(self.modulation(self.modulation_norm(x)))
        return x + self.skip(self.mlp(self.mlp_norm(x)))


@MODELS.register("focalnet_tiny_cifar")
class FocalNet(nn.Module):
    """27,662,350 parameters for 10 classes of RGB images; ``dense`` 100,834,702.

    FocalNet-T with two focal levels, 3 and 5 tokens wide, and patches of 2 x 2 pixels.

    Args:
        width: of the tokens of the first stage; it doubles with each of the four.
        depths: blocks of each stage.
        stochastic_depth: share of the samples for which the last block is skipped in training; from 0 at the first.
        dense: ordinary instead of depthwise convolutions, as in the code that AdaFisher's authors released.

    Raises:
        ConfigError: the image cannot be halved four times.
    """

    def __init__(
        self,
        *,
        width: Count = 96,
        depths: tuple[Count, Count, Count, Count] = (2, 2, 6, 2),
        stochastic_depth: Fraction = 0.1,
        dense: bool = False,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
        image_size: Count | tuple[Count, Count] | None = None,
    ) -> None:
        super().__init__()
        if min(height_width(image_size)) < 16:
            raise ConfigError("model=focalnet_tiny_cifar halves the image 4 times and needs 16 pixels a side")
        channels = required_from_data("in_channels", in_channels)
        last = max(sum(depths) - 1, 1)
        shares = iter([stochastic_depth * block / last for block in range(sum(depths))])
        stages: list[nn.Module] = []
        for depth in depths:
            stages.append(Patches(channels, width))
            stages += [Block(width, dense, next(shares)) for _ in range(depth)]
            channels, width = width, 2 * width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, required_from_data("num_classes", num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.stages(images.permute(0, 2, 3, 1))  # [B, H / 16, W / 16, 8 * width]
        return self.head(self.norm(x).mean(dim=(1, 2)))  # [B, num_classes]
