"""Layer types of other libraries, by name: none of them is imported, and none need be installed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutions import POOLED_CONVOLUTIONS, convolution
from .layers import (
    Layer,
    batch_norm,
    channels_first,
    embedding,
    group_norm,
    layer_norm,
    linear,
    norm_of_last_axes,
    register_layer,
    with_bias,
)
from .mean_squares import mean_last
from .views import View

# The rows of these are those of a layer of torch, from which they differ in how they compute.
register_layer("timm.Linear")(linear)
register_layer("timm.GroupNorm", "timm.GroupNorm1")(group_norm)
register_layer("timm.LayerNorm", "timm.LayerNormFp32")(layer_norm)


@register_layer("transformers.Conv1D")
def _transposed_linear(module: Any) -> Layer:
    """A linear layer with a weight of shape ``[in, out]``, as in GPT-2."""
    inside, outside = module.weight.shape
    H_size = (inside + 1,)
    views = {
        "weight": View((inside, outside), (1, outside), (inside, 1), (outside,), H_size, slice(0, inside)),
        "bias": View((outside,), (outside,), (1,), (outside,), H_size, slice(inside, inside + 1)),
    }
    return Layer("Conv1D", lambda x, output: with_bias(mean_last(x), module), mean_last, views)


@register_layer("transformers.*ScaledWordEmbedding")
def _scaled_embedding(module: Any) -> Layer:
    """An embedding whose output is multiplied by a constant."""
    layer = embedding(module)
    return replace(layer, S=lambda s: layer.S(s) * module.embed_scale**2)


# Norms ----------------------------------------------------------------------------------------------------------


@register_layer("timm.LayerNorm2d", "timm.LayerNorm2dFp32", "torchvision.LayerNorm2d")
def _layer_norm_2d(module: nn.LayerNorm) -> Layer:
    return channels_first(layer_norm(module))


@register_layer("transformers.*LayerNorm")
def _layer_norm_of_either(module: Any) -> Layer | None:
    """ConvNeXt's and SAM's, which are told on which axis the channels are."""
    order = getattr(module, "data_format", None) if isinstance(module, nn.LayerNorm) else None
    if order == "channels_first":
        return _layer_norm_2d(module)
    return layer_norm(module) if order == "channels_last" else None


@register_layer(
    "transformers.*RMSNorm",
    "transformers.*T5LayerNorm",  # T5, MT5, UMT5, LongT5
    "transformers.SwitchTransformersLayerNorm",
    "transformers.UdopLayerNorm",
    "transformers.Pix2StructLayerNorm",
    "transformers.Pop2PianoLayerNorm",
    "transformers.Kosmos2_5LayerNorm",
)
def _rms_norm(module: Any) -> Layer | None:
    """``w x̂`` or ``(1 + w) x̂``. Not the few that normalize groups of channels, or after the scale."""
    weight = getattr(module, "weight", None)
    if weight is None or getattr(module, "group_size", None) or "InputScaled" in type(module).__name__:
        return None
    shape = tuple(weight.shape)
    return norm_of_last_axes(module, shape, partial(F.rms_norm, normalized_shape=shape, eps=_eps(module)))


@register_layer("timm.RmsNorm", "timm.RmsNormFp32")
def _timm_rms_norm(module: Any) -> Layer:
    shape = tuple(module.normalized_shape)
    return norm_of_last_axes(module, shape, partial(F.rms_norm, normalized_shape=shape, eps=module.eps))


@register_layer("timm.RmsNorm2d", "timm.RmsNorm2dFp32")
def _timm_rms_norm_2d(module: Any) -> Layer:
    return channels_first(_timm_rms_norm(module))


@register_layer("transformers.DebertaLayerNorm", "transformers.Cohere*LayerNorm")
def _plain_layer_norm(module: Any) -> Layer:
    shape = tuple(module.weight.shape)  # Cohere's may have a row for each head, of which each is normalized
    normalise = partial(F.layer_norm, normalized_shape=shape[-1:], eps=_eps(module))
    return norm_of_last_axes(module, shape, normalise)


def _with_activation(norm: Callable[[Any], Layer], module: nn.Module) -> Layer:
    return replace(norm(module), output="drop")


def _eps(module: Any) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


# timm's norms with their activations: the norm ends where ``drop`` begins.
WITH_ACTIVATION: list[tuple[Callable[[Any], Layer], tuple[str, str]]] = [
    (batch_norm, ("timm.BatchNormAct2d", "timm.SyncBatchNormAct")),
    (group_norm, ("timm.GroupNormAct", "timm.GroupNorm1Act")),
    (layer_norm, ("timm.LayerNormAct", "timm.LayerNormActFp32")),
    (_layer_norm_2d, ("timm.LayerNormAct2d", "timm.LayerNormAct2dFp32")),
    (_timm_rms_norm, ("timm.RmsNormAct", "timm.RmsNormActFp32")),
    (_timm_rms_norm_2d, ("timm.RmsNormAct2d", "timm.RmsNormAct2dFp32")),
]
for _norm, _names in WITH_ACTIVATION:
    register_layer(*_names)(partial(_with_activation, _norm))


# Convolutions ---------------------------------------------------------------------------------------------------


def _convolution_same(module: nn.Conv2d, pool_groups: bool = False) -> Layer:
    """A convolution that pads its input as TensorFlow does: so much that the output has size / stride."""
    layer = convolution(module, pool_groups)

    def H(x: Tensor, output: torch.Size) -> Tensor:
        padding: list[int] = []
        for axis in (1, 0):  # the order of `F.pad`
            reach = (output[axis - 2] - 1) * module.stride[axis] + 1
            reach += (module.kernel_size[axis] - 1) * module.dilation[axis]
            missing = max(0, reach - x.shape[axis - 2])
            padding += [missing // 2, missing - missing // 2]
        return layer.H(F.pad(x, padding), output)

    return replace(layer, H=H)


register_layer("timm.Conv2dSame")(_convolution_same)
POOLED_CONVOLUTIONS["timm.Conv2dSame"] = partial(_convolution_same, pool_groups=True)
