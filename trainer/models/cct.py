"""Compact Convolutional Transformer for CIFAR-sized images (arXiv 2104.05704)."""

import torch
from torch import Tensor, nn

from trainer.models.attention import SelfAttention, feed_forward
from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count, Fraction


class Block(nn.Module):
    """Attention on a normalised copy that is added back, a norm, and an MLP that is added back.

    Args:
        width: of a token, a multiple of heads.
        heads: of the attention.
        dropout: of the attention weights.
        skipped: the share of samples for which attention and MLP are left out in training.
    """

    def __init__(self, width: int, heads: int, dropout: float, skipped: float) -> None:
        from torchvision.ops import StochasticDepth  # slow to import, and most runs do without it

        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, width)
        self.skip = StochasticDepth(skipped, "row")

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = self.mlp_norm(x + self.skip(self.attention(self.attention_norm(x))))
        return x + self.skip(self.mlp(x))


@MODELS.register("cct2_cifar")
class CCT(nn.Module):
    """CCT-2/3x2: 283,723 parameters for 10 classes of RGB images; ``released`` 821,003.

    Two 3x3 convolutions of 64 and 128 channels make 64 tokens of 32 x 32 pixels. In the code that AdaFisher's authors
    released it is another network: one convolution of 256 channels with stride 2 and padding 3 makes 81 tokens.

    Args:
        dropout: of the attention weights.
        stochastic_depth: share of the samples for which the last block is skipped in training; from 0 at the first.
        released: the released network instead of the printed one.
    """

    def __init__(
        self,
        *,
        dropout: Fraction = 0.1,
        stochastic_depth: Fraction = 0.1,
        released: bool = False,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
        image_size: Count | tuple[Count, Count] | None = None,
    ) -> None:
        super().__init__()
        channels = required_from_data("in_channels", in_channels)
        widths, stride, padding = ([256], 2, 3) if released else ([64, 128], 1, 1)
        height, width = height_width(image_size)
        layers: list[nn.Module] = []
        for out in widths:
            layers += [
                nn.Conv2d(channels, out, 3, stride, padding, bias=False),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
            channels = out
            # the convolution's size, which the pool halves, rounded up
            height, width = (((side + 2 * padding - 3) // stride + 2) // 2 for side in (height, width))
        self.tokenizer = nn.Sequential(*layers)
        positions = torch.empty(height * width, channels)
        self.positions = nn.Parameter(nn.init.trunc_normal_(positions, std=0.2))
        self.blocks = nn.Sequential(
            *(Block(channels, 2, dropout, skipped) for skipped in (0.0, stochastic_depth))
        )
        self.norm = nn.LayerNorm(channels)
        self.pooling = nn.Linear(channels, 1)
        self.head = nn.Linear(channels, required_from_data("num_classes", num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.tokenizer(images).flatten(2).transpose(1, 2)  # [B, T, width]
        x = self.norm(self.blocks(x + self.positions))
        weights = self.pooling(x).softmax(dim=1)  # [B, T, 1]: how much each token counts
        return self.head((weights * x).sum(dim=1))  # [B, num_classes]
