"""Factors as the authors' released code has them where it departs from the paper."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from .convolutions import convolution
from .layers import LAYERS, Layer, LayerType
from .mean_squares import factor_dtype
from .views import View


def _convolution(module: nn.Conv2d) -> Layer:
    """H over the size of a patch."""
    layer = convolution(module, pool_groups=True)
    patch = module.weight.numel() / module.out_channels / module.groups  # it adds the groups up
    return replace(layer, H=lambda x, output: layer.H(x, output) / patch)


def _norm(module: nn.BatchNorm2d | nn.LayerNorm) -> Layer:
    """H of two scalars that mix the channels, one for the scale and one for the shift."""
    keep = 1 if isinstance(module, nn.BatchNorm2d) else -1

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = x.to(factor_dtype(x.dtype))
        batch, channels = x.shape[:2]
        means = x.movedim(1, 0).reshape(channels, -1).sum(1) / (x.numel() / batch / channels) ** 2
        return torch.stack([means.square().sum(), means.new_tensor(channels)]) / batch**2

    def S(s: Tensor) -> Tensor:
        rows = s.movedim(keep, 0).to(factor_dtype(s.dtype)).reshape(s.shape[keep], -1)
        return rows.sum(1).square() / s.shape[0]

    shape = () if module.weight is None else tuple(module.weight.shape)
    views = {
        name: View(shape, shape, (1,) * len(shape), (math.prod(shape),), (2,), slice(i, i + 1))
        for i, name in enumerate(("weight", "bias"))
    }
    return Layer(type(module).__name__, H, S, views)


RELEASED_LAYERS: dict[type[nn.Module] | str, LayerType] = {
    nn.Linear: LAYERS[nn.Linear],
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _norm,
    nn.LayerNorm: _norm,
}
"""The layer types that it knows."""
