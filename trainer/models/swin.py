"""Swin Transformer for CIFAR-sized images: attention within windows that shift (arXiv 2103.14030)."""

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.attention import SelfAttention, feed_forward
from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count

HEAD_WIDTH = 32
MERGING = (2, 2, 2, 1)
"""Sides of the squares of tokens, of pixels first, of which each stage makes one token."""


class Merge(nn.Module):
    """Makes one token of each square of side x side tokens, by a linear layer."""

    def __init__(self, width: int, out: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Linear(width * side**2, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] -> [B, H / side, W / side, out]."""
        return self.linear(squares(x, self.side).flatten(-2))


class WindowAttention(nn.Module):
    """Attention within each square of window x window tokens; all heads share one table of relative positions.

    Args:
        width: of a token, a multiple of ``HEAD_WIDTH``.
        window: side of a window, which divides height and width of the image.
        shift: tokens by which the windows are moved, around the edges; what meets there does not attend to each other.
        size: height and width of the image in tokens.
    """

    bias_of: Tensor
    """int64 [T, T]: where in the table the bias of a score is; T = window²."""
    apart: Tensor
    """bool [windows, 1, T, T]: which tokens of a window do not attend to each other."""

    def __init__(self, width: int, window: int, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.attention = SelfAttention(width, width // HEAD_WIDTH)
        self.table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(2 * window - 1, 2 * window - 1), std=0.02)
        )
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [T, 2]
        row, column = (places[None] - places[:, None] + window - 1).unbind(-1)  # each [T, T], from 0
        self.register_buffer("bias_of", row * (2 * window - 1) + column, persistent=False)
        self.register_buffer("apart", seams(size, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        height, width = x.shape[1:3]
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = squares(x, self.window).flatten(1, 2)  # [B, windows, T, width]
        bias = self.table.flatten()[self.bias_of].masked_fill(self.apart, -torch.inf)  # [windows, 1, T, T]
        y = self.attention(windows, bias)
        y = unsquares(y, height, width, self.window)
        return y.roll((self.shift, self.shift), (1, 2)) if self.shift else y


def squares(x: Tensor, side: int) -> Tensor:
    """[B, H, W, C] -> [B, H / side, W / side, side², C]."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, H / side, side, W / side, side, C]
    return x.transpose(2, 3).flatten(3, 4)


def unsquares(x: Tensor, height: int, width: int, side: int) -> Tensor:
    """[B, H W / side², side², C] -> [B, H, W, C]."""
    x = x.unflatten(1, (height // side, width // side)).unflatten(3, (side, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def seams(size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Which tokens of a window are from opposite edges of the image: bool [windows, 1, T, T]."""
    wrapped = [torch.arange(side) >= side - shift for side in size]
    region = 2 * wrapped[0][:, None] + wrapped[1]  # [H, W]
    region = squares(region[None, :, :, None], window).flatten(1, 2)[0, :, :, 0]  # [windows, T]
    return region[:, None, :, None] != region[:, None, None, :]


class Block(nn.Module):
    """Attention within windows, then an MLP four times as wide, each on a normalised copy that is added back."""

    def __init__(self, width: int, window: int, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = WindowAttention(width, window, shift, size)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


@MODELS.register("swin_tiny_cifar")
class Swin(nn.Module):
    """26,598,646 parameters for 10 classes of RGB images: 16², 8², 4² and 4² tokens of 32 x 32 pixels.

    Smaller changes from the original: tokens are merged without a norm and the last stage keeps its number of tokens;
    query, key and value have no bias; all heads share one table of relative positions.

    Args:
        width: of the tokens of the first stage, a multiple of 32, the width of a head; it doubles with each stage.
        depths: blocks of each of the four stages; every second one has shifted windows.
        window: side of a window, in tokens.

    Raises:
        ConfigError: the windows do not tile the image, or the width is no multiple of 32.
    """

    def __init__(
        self,
        *,
        width: Count = 96,
        depths: tuple[Count, Count, Count, Count] = (2, 2, 6, 2),
        window: Count = 4,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
        image_size: Count | tuple[Count, Count] | None = None,
    ) -> None:
        super().__init__()
        if width % HEAD_WIDTH:
            raise ConfigError(f"model.width={width} must be a multiple of {HEAD_WIDTH}")
        size = height_width(image_size)
        channels = required_from_data("in_channels", in_channels)
        stages: list[nn.Module] = []
        for stage, (depth, side) in enumerate(zip(depths, MERGING, strict=True)):
            if any(length % (side * window) for length in size):
                raise ConfigError(
                    f"model.window={window} does not tile images of {height_width(image_size)} in stage {stage + 1}, "
                    f"which has {size[0] / side:g} x {size[1] / side:g} tokens"
                )
            size = size[0] // side, size[1] // side
            stages.append(Merge(channels, width, side))
            stages += [Block(width, window, i % 2 * (window // 2), size) for i in range(depth)]
            channels, width = width, 2 * width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, required_from_data("num_classes", num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.stages(images.permute(0, 2, 3, 1))  # [B, H / 8, W / 8, 8 * width]
        return self.head(self.norm(x.mean(dim=(1, 2))))  # [B, num_classes]
