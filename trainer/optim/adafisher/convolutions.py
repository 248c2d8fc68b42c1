"""Factors of convolutions: H from the mean squares that each tap of the kernel meets, without unfolding the input."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._torch_private import Convolution, TransposedConvolution, padding_of
from .layers import Layer, LayerType, batched, register_layer, with_bias
from .mean_squares import mean_channels, sum_rows
from .views import matrix_views


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: Convolution, pool_groups: bool = False) -> Layer:
    """A convolution. With ``pool_groups`` its groups share the mean of their H, instead of having one each."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = padding_of(module)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    pointwise = not any(padding) and all(k == s == 1 for k, s in zip(kernel, stride, strict=True))

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = batched(x, len(kernel))
        if pointwise:
            return _tap_means(mean_channels(x), module, pool_groups)
        image = F.pad(sum_rows(x)[None], padding, mode=mode)[0]  # padding commutes with squares and sums
        positions = output[-len(kernel) :]
        # The positions that a kernel tap meets form a box, so that they are summed one axis after the other.
        for axis, (k, s, d, size) in enumerate(zip(kernel, stride, dilation, positions, strict=True), 1):
            image = image.unfold(axis, s * (size - 1) + 1, d).narrow(axis, 0, k)[..., ::s].sum(-1)
        return _tap_means(image / (x.shape[0] * positions.numel()), module, pool_groups)

    rest = (module.in_channels // module.groups, *kernel)
    groups = 1 if pool_groups else module.groups
    views = matrix_views(module.out_channels, rest, bias=module.bias is not None, groups=groups)
    return Layer(type(module).__name__, H, _spatial_S(module), views)


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(module: TransposedConvolution, pool_groups: bool = False) -> Layer:
    """A transposed convolution; ``pool_groups`` as for `convolution`."""
    kernel, groups = module.kernel_size, module.groups
    assert not isinstance(module.padding, str)  # only convolutions that are not transposed have 'same'
    padding = module.padding

    def taps(axis: int, inputs: int, outputs: int) -> list[slice]:
        """The inputs p that meet an output, p · stride + tap · dilation - padding, for each tap."""
        stride, offset = module.stride[axis], padding[axis]
        offsets = [offset - tap * module.dilation[axis] for tap in range(kernel[axis])]
        return [
            slice(max(0, -(-o // stride)), max(0, min(inputs, (outputs - 1 + o) // stride + 1)))
            for o in offsets
        ]

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = batched(x, len(kernel))
        outputs = output[-len(kernel) :]
        image = sum_rows(x)
        for axis in range(len(kernel)):  # the positions that a tap meets form a box
            met = taps(axis, x.shape[axis + 2], outputs[axis])
            image = torch.stack([image[:, positions].sum(1) for positions in met], -1)
        return _tap_means(image / (x.shape[0] * outputs.numel()), module, pool_groups)

    inside, outside = module.in_channels // groups, module.out_channels // groups
    H_groups = 1 if pool_groups else groups
    columns = inside * math.prod(kernel)
    views = matrix_views(module.out_channels, (columns,), bias=module.bias is not None, groups=H_groups)
    views["weight"] = views["weight"]._replace(
        shape=(groups, inside, outside, *kernel),
        S_shape=(groups, 1, outside, *(1,) * len(kernel)),
        H_shape=(H_groups, inside, 1, *kernel),
        row_axes=2,
    )
    return Layer(type(module).__name__, H, _spatial_S(module), views)


def _tap_means(means: Tensor, module: Convolution, pool_groups: bool) -> Tensor:
    """H from the mean square that a tap meets: [C_in, *kernel] -> [groups, C_in/groups · k (+ 1)] or without groups."""
    means = means.reshape(module.groups, -1)
    return with_bias(means.mean(0) if pool_groups else means.squeeze(0), module)


def _spatial_S(module: Convolution) -> Callable[[Tensor], Tensor]:
    return lambda s: mean_channels(batched(s, len(module.kernel_size)))


POOLED_CONVOLUTIONS: dict[type[nn.Module] | str, LayerType] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), partial(convolution, pool_groups=True)),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        partial(transposed_convolution, pool_groups=True),
    ),
}
"""Convolutions as the published rules see them: with one H for all groups."""
