"""Floating-point operations of a model, and how many its device could do.

Those of the model as it is written count, by PyTorch's counter (of matrix products and convolutions; a multiplication
and an addition are two): what is computed again to save memory, or for the optimizer, does not.
"""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.training.precision import Precision

BACKWARD = 2
"""Operations of a backward pass in those of a forward pass: a product's gradient has two products of its size."""

PEAKS = {
    "B200": (2250e12, 1125e12, 75e12),
    "H200": (989e12, 494e12, 67e12),
    "H100 PCIe": (756e12, 378e12, 51e12),
    "H100": (989e12, 494e12, 67e12),
    "A100": (312e12, 156e12, 19.5e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "L4": (121e12, 60e12, 30.3e12),
    "RTX 4090": (165e12, 82.6e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12, 35.6e12),
    "V100": (125e12, 15.7e12, 15.7e12),
}
"""Operations per second of NVIDIA's data sheets, by a part of the device's name: in 16 bits, TF32 and float32, without
sparsity. The first name that fits counts."""


def skeleton_of(model: nn.Module) -> nn.Module | None:
    """A copy of a model on the device ``meta``, which holds no numbers; None of one that cannot be copied."""
    tensors = [*model.parameters(), *model.buffers()]
    try:
        memo = {id(tensor): _without_data(tensor) for tensor in tensors}
        return copy.deepcopy(model, memo)
    except Exception:  # a module may hold anything
        return None


def _without_data(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def training_flops(skeleton: nn.Module | None, inputs: Tensor) -> float | None:
    """Operations of a forward and a backward pass for one sample.

    Args:
        skeleton: the model without its numbers.
        inputs: one sample, [1, ...].

    Returns:
        None of a model that cannot run without its numbers, or has no operation that is counted.
    """
    counter = FlopCounterMode(display=False)
    try:
        assert skeleton is not None
        with torch.no_grad(), counter:
            skeleton.eval()(inputs.to("meta"))
    except Exception:  # its outputs may depend on the values of its inputs
        return None
    return (1 + BACKWARD) * counter.get_total_flops() or None


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Operations per second that a device can do in a precision; None of one that is not in `PEAKS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    if peaks is None:
        return None
    half, tf32, single = peaks
    return half if precision.compute_dtype else tf32 if precision.name == "tf32" else single
