"""Layer types: what their factors H and S are, and how their parameters see them. Pure functions.

A layer type is one function that describes a module. ``h`` are the rows that a weight multiplies, ``s`` the rows of
the gradient of the loss with respect to the layer's output (the notation of arXiv 2405.16397)::

    H = mean over rows of [h, 1]²        S = mean over rows of s²        Fisher[i, j] ≈ S[i] · H[j]
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._torch_private import BatchNorm, InstanceNorm
from .mean_squares import factor_dtype, mean_channels, mean_last, sum_rows, variance_channels
from .views import View, matrix_views, scale_view, shift_view

STATISTICS = "batch_variance"
"""The attribute of a batch norm that does not normalize by its own input alone, but by that of all ranks: it holds the
variance that the last forward pass used, [C]."""


@dataclass(frozen=True)
class Layer:
    """A layer whose factors are known.

    Args:
        kind: the name of its type, as `AdaFisher.coverage` reports it.
        H: makes H, in the shape ``H_size`` of the views, of the tensors that the layer was called with and of the
            shape of its output.
        S: makes S, in the shape ``S_size`` of the views, of the gradient of the loss with respect to the output.
        views: how each of its parameters sees them, by the parameter's name in the module.
        output: the name of the child whose input is what counts as the output, where the module does not end with
            what multiplies the rows: a norm with its activation, for example.
        joint: makes both anew of what ``H`` returned and of the gradient, where S needs the rows that it belongs to.
        degree: S grows with this power of the gradient.
        width: the entries of a row of the gradient, where S has not one for each of them.
    """

    kind: str
    H: Callable[..., Tensor]
    S: Callable[[Tensor], Tensor]
    views: Mapping[str, View]
    output: str | None = None
    joint: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    degree: int = 2
    width: int | None = None

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of what ``H`` and ``S`` return."""
        views = sorted(self.views.values(), key=lambda view: view.columns is None)
        return views[0].H_size, views[0].S_size


LayerType = Callable[[Any], Layer | None]
"""Describes a module, or returns None where one of this type has parameters of which it knows nothing."""
Described = TypeVar("Described", bound=LayerType)

LayerTypes = Mapping[type[nn.Module] | str, LayerType]
LAYERS: dict[type[nn.Module] | str, LayerType] = {}
"""All known layer types, by class or by its name, ``package.Class``."""


def register_layer(*classes: type[nn.Module] | str) -> Callable[[Described], Described]:
    """Makes layers of these classes known to AdaFisher; optimizers that exist already do not see them.

    Args:
        classes: or their names, by which they need not be imported: the top package and the class, as in
            ``"transformers.Conv1D"``, wherever in the package it is. An asterisk stands for any part of a name; of
            several that fit the last one counts.

    Example::

        from trainer.optim.adafisher import Layer, View, register_layer

        @register_layer(nn.Bilinear)  # y = x1ᵀ W x2, without a bias here
        def bilinear(module):
            out, left, right = module.weight.shape

            def H(x1, x2, output_shape):  # the rows that the weight multiplies are products of both inputs
                rows = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(0, -3)
                return rows.square().mean(0).flatten()

            def S(s):
                return s.flatten(0, -2).square().mean(0)

            view = View((out, left, right), (out, 1, 1), (1, left, right), (out,), (left * right,))
            return Layer("Bilinear", H, S, {"weight": view})

    Returns:
        a decorator of the function that describes such a module.
    """

    def register(describe: Described) -> Described:
        for one in classes:
            LAYERS.pop(one, None)  # so that it is the last one
            LAYERS[one] = describe
        return describe

    return register


def layer_of(module: nn.Module, layers: LayerTypes = LAYERS) -> Layer | None:
    """The description of a module, or None where its type is not known.

    A subclass counts as its base only if it kept its ``forward``: with another one, what reaches the hooks need
    not be what the weight multiplies. A norm that has ``STATISTICS`` says enough about its own.
    """
    for kind in type(module).__mro__:
        if issubclass(kind, nn.Module) and (describe := _layer_type(kind, layers)):
            is_known = type(module).forward is kind.forward or hasattr(module, STATISTICS)
            layer = describe(module) if is_known else None
            if layer is not None and layer.kind == type(module).__name__:  # which FSDP makes, among others
                layer = replace(layer, kind=kind.__name__)
            return layer
    return None


def _layer_type(kind: type[nn.Module], layers: LayerTypes) -> LayerType | None:
    if kind in layers:
        return layers[kind]
    package = kind.__module__.partition(".")[0]
    if package == "torch":
        return None
    name = f"{package}.{kind.__name__}"
    fitting = [key for key in layers if isinstance(key, str) and fnmatchcase(name, key)]
    return layers[fitting[-1]] if fitting else None


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself, not of its children; shared ones, too."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


# Linear layers and embeddings -----------------------------------------------------------------------------------


def with_bias(H: Tensor, module: nn.Module) -> Tensor:
    """H, with the 1 that a bias multiplies at its end if the module has one."""
    return H if module.bias is None else F.pad(H, (0, 1), value=1.0)


def batched(x: Tensor, spatial: int) -> Tensor:
    """``[N, C, ...]``: convolutions and instance norms take a single sample without its batch axis."""
    return x if x.dim() == spatial + 2 else x[None]


@register_layer(nn.Linear)
def linear(module: nn.Linear) -> Layer:
    """Rows are the vectors along the last axis of the input."""

    def H(x: Tensor, output: torch.Size) -> Tensor:
        return with_bias(mean_last(x), module)

    views = matrix_views(module.out_features, (module.in_features,), bias=module.bias is not None)
    return Layer("Linear", H, mean_last, views)


@register_layer(nn.Embedding)
def embedding(module: nn.Embedding) -> Layer:
    """Rows are one-hot tokens: H are their frequencies."""
    rows, columns = module.num_embeddings, module.embedding_dim
    dtype = factor_dtype(module.weight.dtype)

    def H(tokens: Tensor, output: torch.Size) -> Tensor:
        return torch.bincount(tokens.reshape(-1), minlength=rows).to(dtype) / tokens.numel()

    view = View((rows, columns), (1, columns), (rows, 1), (columns,), (rows,))
    return Layer("Embedding", H, mean_last, {"weight": view})


# Norms ----------------------------------------------------------------------------------------------------------


@register_layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(module: BatchNorm) -> Layer:
    """Rows are samples and positions; H is the mean of x̂², as for the norms below."""

    def H(x: Tensor, output: torch.Size) -> Tensor:
        variance = getattr(module, STATISTICS, None)
        if variance is None:
            variance = variance_channels(x)
        return variance / (variance + module.eps)  # the mean of x̂² over batch and positions

    return _norm(module, H, mean_channels)


@register_layer(nn.GroupNorm)
def group_norm(module: nn.GroupNorm) -> Layer:
    """Rows are samples and positions."""

    def H(x: Tensor, output: torch.Size) -> Tensor:
        return mean_channels(F.group_norm(x, module.num_groups, eps=module.eps))

    return _norm(module, H, mean_channels)


@register_layer(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(module: InstanceNorm) -> Layer:
    """Rows are samples and positions."""
    kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    spatial = 1 + next(i for i, kind in enumerate(kinds) if isinstance(module, kind))

    def H(x: Tensor, output: torch.Size) -> Tensor:
        x = batched(x, spatial)
        return mean_channels(F.group_norm(x, x.shape[1], eps=module.eps))

    return _norm(module, H, lambda s: mean_channels(batched(s, spatial)))


@register_layer(nn.LayerNorm, nn.RMSNorm)
def layer_norm(module: nn.LayerNorm | nn.RMSNorm) -> Layer:
    """Rows are what is normalized at once."""
    shape = tuple(module.normalized_shape)
    normalise: Callable[..., Tensor] = F.rms_norm if isinstance(module, nn.RMSNorm) else F.layer_norm
    return norm_of_last_axes(module, shape, partial(normalise, normalized_shape=shape, eps=module.eps))


def norm_of_last_axes(
    module: nn.Module, shape: tuple[int, ...], normalise: Callable[[Tensor], Tensor]
) -> Layer:
    """A norm over the last axes, of this shape; ``normalise`` gives what its scale multiplies."""

    def mean(x: Tensor) -> Tensor:
        rows = x.reshape(-1, math.prod(shape))
        return sum_rows(rows) / rows.shape[0]

    return _norm(module, lambda x, output: mean(normalise(x)), mean)


def channels_first(layer: Layer) -> Layer:
    """A layer of inputs ``[N, ..., C]`` as one of ``[N, C, ...]``."""
    return replace(
        layer,
        H=lambda x, output: layer.H(x.movedim(1, -1), output),
        S=lambda s: layer.S(s.movedim(1, -1)),
    )


def _norm(module: Any, H: Callable[[Tensor, torch.Size], Tensor], S: Callable[[Tensor], Tensor]) -> Layer:
    """One entry a channel in both factors of the scale; the shift multiplies ones."""
    views = {}
    if module.weight is not None:
        shape = tuple(module.weight.shape)
        views = {"weight": scale_view(shape), "bias": shift_view(shape)}
    return Layer(type(module).__name__, H, S, views)
