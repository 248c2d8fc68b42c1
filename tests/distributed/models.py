"""Small models whose shapes do not divide by the number of ranks, and an optimizer that one rank refuses."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models import MODELS
from trainer.optim import OPTIMIZERS
from trainer.options import Positive


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.convolution(x)).tanh()  # [B, width, h, w]


@MODELS.register("uneven")
class Uneven(nn.Module):
    """A convnet with widths of 5 and 3: three ranks have shards of 2, 2 and 1 rows, of four one has none."""

    def __init__(self, *, num_classes: int | None = None, in_channels: int | None = None) -> None:
        super().__init__()
        assert num_classes is not None
        assert in_channels is not None
        self.stem = nn.Conv2d(in_channels, 5, 3, stride=2)
        self.blocks = nn.ModuleList(Block(5) for _ in range(3))
        self.narrow = nn.Conv2d(5, 3, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.scale * self.narrow(x).mean((2, 3)))  # [B, num_classes]


@MODELS.register("normed")
def normed(*, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """With batch statistics."""
    assert num_classes is not None
    assert in_channels is not None
    layers = [nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(num_classes))


class NormedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.convolution(x)).tanh()  # [B, width, h, w]


@MODELS.register("normed_blocks")
def normed_blocks(*, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """Blocks with batch statistics, which can be recomputed."""
    assert num_classes is not None
    assert in_channels is not None
    blocks = [NormedBlock(5) for _ in range(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes)]
    return nn.Sequential(nn.Conv2d(in_channels, 5, 3, stride=2), *blocks, *head)


class Idle(nn.Module):
    """Half of it is never called."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.LazyLinear(num_classes)
        self.idle = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))  # [B, num_classes]


@MODELS.register("idle")
def idle(*, num_classes: int | None = None) -> nn.Module:
    """With parameters that the loss does not depend on."""
    assert num_classes is not None
    return Idle(num_classes)


@OPTIMIZERS.register("picky")
def picky(model: nn.Module, params: list[dict[str, Any]], *, lr: Positive = 0.1) -> torch.optim.Optimizer:
    if os.environ.get("RANK") == "1":
        raise ValueError("out of luck")
    return torch.optim.SGD(params, lr=lr)
