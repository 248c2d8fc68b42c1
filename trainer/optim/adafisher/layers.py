"""Diagonal Kronecker factors, layer by layer: what H and S are and how a parameter sees them. Pure functions.

A layer type is one function that describes a module, and one line in ``LAYERS``. The notation is that of the
AdaFisher paper (arXiv 2405.16397): ``h`` are the rows that a weight multiplies, ``s`` the rows of the gradient of
the loss with respect to the layer's output::

    H = mean over rows of [h, 1]²        S = mean over rows of s²        Fisher[i, j] ≈ S[i] · H[j]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.optim.adafisher.mean_squares import (
    factor_dtype,
    mean_channels,
    mean_last,
    sum_rows,
    variance_channels,
)

FromInput = Callable[[Tensor, torch.Size], Tensor]
"""H of a layer's input; the second argument is the shape of its output."""
Convolution = nn.modules.conv._ConvNd
STATISTICS = "batch_variance"
"""The attribute of a batch norm that does not normalise by its own input alone, but by that of all ranks: it holds
the variance that the last forward pass used, [C]."""


class View(NamedTuple):
    """How a parameter sees its factors.

    ``param.view(shape)`` broadcasts against ``S.view(S) * H[..., columns].view(H)``.

    ``columns`` is the parameter's part of the last axis of H; None stands for H = 1, kept as one entry. ``S_size`` and
    ``H_size`` are the shapes in which the factors are kept.
    """

    shape: tuple[int, ...]
    S: tuple[int, ...]
    H: tuple[int, ...]
    S_size: tuple[int, ...]
    H_size: tuple[int, ...]
    columns: slice | None = slice(None)

    def pair(self, H: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the parameter's part of both factors, in shapes that broadcast."""
        return (H if self.columns is None else H[..., self.columns]).view(self.H), S.view(self.S)


@dataclass(frozen=True)
class Layer:
    """A layer whose factors are known: H from its input, S from the gradient of its output, a view a parameter."""

    kind: str
    H: FromInput
    S: Callable[[Tensor], Tensor]
    views: dict[str, View]


# Layer types ----------------------------------------------------------------------------------------------------


def _linear(module: nn.Linear, rule: str) -> Layer:
    out, columns = module.out_features, module.in_features

    def H(x: Tensor, output: torch.Size) -> Tensor:
        return _with_bias(mean_last(x), module)

    return Layer("Linear", H, mean_last, _matrix_views(module, (out, columns), columns))


def _convolution(module: Convolution, rule: str) -> Layer:
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    pointwise = not any(padding) and all(k == s == 1 for k, s in zip(kernel, stride, strict=True))

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = _batched(x, len(kernel))
        if pointwise:
            return _tap_means(mean_channels(x), module, rule)
        image = F.pad(sum_rows(x)[None], padding, mode=mode)[0]  # padding commutes with squares and sums
        positions = output[-len(kernel) :]
        # The positions that a kernel tap meets form a box, so that they are summed one axis after the other.
        for axis, (k, s, d, size) in enumerate(zip(kernel, stride, dilation, positions, strict=True), 1):
            image = image.unfold(axis, s * (size - 1) + 1, d).narrow(axis, 0, k)[..., ::s].sum(-1)
        return _tap_means(image / (x.shape[0] * positions.numel()), module, rule)

    shape = (module.out_channels, module.in_channels // module.groups, *kernel)
    views = _matrix_views(module, shape, math.prod(shape[1:]), _own_groups(module, rule))
    return Layer(type(module).__name__, H, _spatial_S(module), views)


def _transposed_convolution(module: nn.modules.conv._ConvTransposeNd, rule: str) -> Layer:
    kernel, groups, own = module.kernel_size, module.groups, _own_groups(module, rule)
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
        x = _batched(x, len(kernel))
        outputs = output[-len(kernel) :]
        image = sum_rows(x)
        for axis in range(len(kernel)):  # the positions that a tap meets form a box
            met = taps(axis, x.shape[axis + 2], outputs[axis])
            image = torch.stack([image[:, positions].sum(1) for positions in met], -1)
        return _tap_means(image / (x.shape[0] * outputs.numel()), module, rule)

    inside, outside = module.in_channels // groups, module.out_channels // groups
    columns = inside * math.prod(kernel)
    views = _matrix_views(module, (module.out_channels, columns), columns, own)
    views["weight"] = views["weight"]._replace(
        shape=(groups, inside, outside, *kernel),
        S=(groups, 1, outside, *(1,) * len(kernel)),
        H=(own, inside, 1, *kernel),
    )
    return Layer(type(module).__name__, H, _spatial_S(module), views)


def _own_groups(module: Convolution, rule: str) -> int:
    """``calibrated`` keeps an H for each group, a convolution of its own; the published rules average the groups."""
    return module.groups if rule == "calibrated" else 1


def _tap_means(means: Tensor, module: Convolution, rule: str) -> Tensor:
    """H from the mean square that a tap meets: [C_in, *kernel] -> [groups, C_in/groups · k (+ 1)] or without groups."""
    means = means.reshape(module.groups, -1)
    return _with_bias(
        means.mean(0) if _own_groups(module, rule) == 1 < module.groups else means.squeeze(0), module
    )


def _spatial_S(module: Convolution) -> Callable[[Tensor], Tensor]:
    return lambda s: mean_channels(_batched(s, len(module.kernel_size)))


def _embedding(module: nn.Embedding, rule: str) -> Layer:
    rows, columns = module.num_embeddings, module.embedding_dim
    dtype = factor_dtype(module.weight.dtype)

    def H(tokens: Tensor, output: torch.Size) -> Tensor:
        return torch.bincount(tokens.reshape(-1), minlength=rows).to(dtype) / tokens.numel()

    view = View((rows, columns), (1, columns), (rows, 1), (columns,), (rows,))
    return Layer("Embedding", H, mean_last, {"weight": view})


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, rule: str) -> Layer:
    def H(x: Tensor, output: torch.Size) -> Tensor:
        variance = getattr(module, STATISTICS, None)
        if variance is None:
            variance = variance_channels(x)
        return variance / (variance + module.eps)  # the mean of x̂² over batch and positions

    return _norm(module, H, mean_channels)


def _channel_norm(module: nn.GroupNorm | nn.modules.instancenorm._InstanceNorm, rule: str) -> Layer:
    def batched(x: Tensor) -> Tensor:
        for spatial, kind in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1):
            if isinstance(module, kind):
                return _batched(x, spatial)
        return x

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = batched(x)
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        return mean_channels(F.group_norm(x, groups, eps=module.eps))

    return _norm(module, H, lambda s: mean_channels(batched(s)))


def _layer_norm(module: nn.LayerNorm | nn.RMSNorm, rule: str) -> Layer:
    shape = tuple(module.normalized_shape)
    normalise: Callable[..., Tensor] = F.rms_norm if isinstance(module, nn.RMSNorm) else F.layer_norm

    def mean(x: Tensor) -> Tensor:
        rows = x.reshape(-1, math.prod(shape))
        return sum_rows(rows) / rows.shape[0]

    return _norm(module, lambda x, output: mean(normalise(x, shape, eps=module.eps)), mean)


# What the released code does otherwise: H over the patch size, and scalars that mix the channels of a norm -----------


def _released_convolution(module: nn.Conv2d, rule: str) -> Layer:
    layer = _convolution(module, rule)
    patch = module.weight.numel() / module.out_channels / module.groups  # it adds the groups up
    return replace(layer, H=lambda x, output: layer.H(x, output) / patch)


def _released_norm(module: nn.BatchNorm2d | nn.LayerNorm, rule: str) -> Layer:
    keep = 1 if isinstance(module, nn.BatchNorm2d) else -1

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = x.to(factor_dtype(x.dtype))
        batch, channels = x.shape[:2]
        means = x.movedim(1, 0).reshape(channels, -1).sum(1) / (x.numel() / batch / channels) ** 2
        return torch.stack([means.square().sum(), means.new_tensor(channels)]) / batch**2

    def S(s: Tensor) -> Tensor:
        rows = s.movedim(keep, 0).to(factor_dtype(s.dtype)).reshape(s.shape[keep], -1)
        return rows.sum(1).square() / s.shape[0]

    shape = tuple(module.weight.shape)
    views = {
        name: View(shape, shape, (1,) * len(shape), (math.prod(shape),), (2,), slice(i, i + 1))
        for i, name in enumerate(("weight", "bias"))
    }
    return Layer(type(module).__name__, H, S, views)


# What the layer types share -----------------------------------------------------------------------------------


def _with_bias(H: Tensor, module: nn.Module) -> Tensor:
    return H if module.bias is None else F.pad(H, (0, 1), value=1.0)


def _batched(x: Tensor, spatial: int) -> Tensor:
    """Convolutions and instance norms take a single sample without its batch axis."""
    return x if x.dim() == spatial + 2 else x[None]


def _matrix_views(
    module: nn.Module, shape: tuple[int, ...], columns: int, groups: int = 1
) -> dict[str, View]:
    """Rows have S, columns have H, and the bias is H's last column. With groups, each has an H of its own."""
    out, rest = shape[0], shape[1:]
    ones = (1,) * len(rest)
    split = () if groups == 1 else (groups,)
    rows = (out,) if groups == 1 else (groups, out // groups)
    H_size = (*split, columns + (module.bias is not None))
    views = {
        "weight": View((*rows, *rest), (*rows, *ones), (*split, 1, *rest), (out,), H_size, slice(0, columns))
    }
    if module.bias is not None:
        views["bias"] = View(rows, rows, (*split, 1), (out,), H_size, slice(columns, columns + 1))
    return views


def _norm(module: Any, H: FromInput, S: Callable[[Tensor], Tensor]) -> Layer:
    """One entry a channel in both factors of the scale; the shift multiplies ones."""
    views = {}
    if module.weight is not None:
        shape = tuple(module.weight.shape)
        size = (math.prod(shape),)
        views["weight"] = View(shape, shape, shape, size, size)
        views["bias"] = vector_view(shape)
    return Layer(type(module).__name__, H, S, views)


def vector_view(shape: tuple[int, ...]) -> View:
    """S has an entry for every element and H is 1."""
    return View(shape, shape, (1,) * len(shape), (math.prod(shape),), (1,), None)


LayerType = Callable[[Any, str], Layer]

LAYERS: dict[type[nn.Module], LayerType] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.Embedding: _embedding,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GroupNorm: _channel_norm,
    nn.InstanceNorm1d: _channel_norm,
    nn.InstanceNorm2d: _channel_norm,
    nn.InstanceNorm3d: _channel_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
}

RELEASED_LAYERS: dict[type[nn.Module], LayerType] = {
    nn.Linear: _linear,
    nn.Conv2d: _released_convolution,
    nn.BatchNorm2d: _released_norm,
    nn.LayerNorm: _released_norm,
}


def layer_of(module: nn.Module, rule: str) -> Layer | None:
    """The description of a module, or None where its type is not known.

    A subclass counts as its base only if it kept its ``forward``: with another one, what reaches the hooks need
    not be what the weight multiplies. A norm that has ``STATISTICS`` says enough about its own.
    """
    for kind, layer_type in (RELEASED_LAYERS if rule == "released" else LAYERS).items():
        is_known = type(module).forward is kind.forward or hasattr(module, STATISTICS)
        if isinstance(module, kind) and is_known:
            return layer_type(module, rule)
    return None


# The fallback ---------------------------------------------------------------------------------------------------


def gradient_view(param: Tensor) -> View:
    """A parameter of no known layer: rows have S, columns H; a vector has S alone."""
    shape = tuple(param.shape)
    if len(shape) < 2:
        return vector_view(shape)
    ones = (1,) * (len(shape) - 1)
    return View(shape, (shape[0], *ones), (1, *shape[1:]), (shape[0],), (math.prod(shape[1:]),))


def gradient_means(square: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Column and row means of g², from which `gradient_factors` makes H and S. They are linear in g²."""
    square = square.view(view.shape)
    S = square if view.columns is None else _mean_over(square, view.S)
    return _mean_over(square, view.H), S.reshape(view.S_size)


def gradient_factors(columns: Tensor, rows: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """H and S of a parameter from its gradient: S = row means of g², H = column means of g² / mean of g².

    H's entries that belong to other parameters are 1, the mean of the rest.
    """
    H = rows.new_ones(view.H_size)
    if view.columns is not None:
        H[..., view.columns] = (columns / rows.mean()).reshape(H[..., view.columns].shape)
    return H, rows


def _mean_over(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mean of x over the axes in which the shape has 1."""
    axes = [axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] > 1]
    return x.mean(axes, keepdim=True) if axes else x
