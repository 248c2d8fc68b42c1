"""What this package uses of torch beyond its documented interface, each with the reason.

``tests/optim/adafisher/test_torch_private.py`` checks by name that it is there and does what is relied on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = [
    "GRAD_SCALER_PROTOCOL",
    "NO_BACKWARD",
    "BatchNorm",
    "Convolution",
    "InstanceNorm",
    "TransposedConvolution",
    "current_backward",
    "flattened",
    "foreach_add",
    "foreach_add_",
    "foreach_addcdiv_",
    "foreach_clamp_max",
    "foreach_div_",
    "foreach_lerp",
    "foreach_lerp_",
    "foreach_mul",
    "foreach_mul_",
    "foreach_norm",
    "local_shape_and_offset",
    "padding_of",
]

# `Convolution`, ...: the common bases of torch's layers of 1, 2 and 3 dimensions have no public names.

# One call for a list of tensors: torch.optim's own `foreach` implementations are made of these.
foreach_add, foreach_add_ = torch._foreach_add, torch._foreach_add_
foreach_lerp, foreach_lerp_ = torch._foreach_lerp, torch._foreach_lerp_
foreach_mul, foreach_mul_ = torch._foreach_mul, torch._foreach_mul_
foreach_div_, foreach_addcdiv_, foreach_norm = (
    torch._foreach_div_,
    torch._foreach_addcdiv_,
    torch._foreach_norm,
)
foreach_clamp_max = torch._foreach_clamp_max

GRAD_SCALER_PROTOCOL = "_step_supports_amp_scaling"
"""An optimizer with this attribute gets ``grad_scale`` and ``found_inf`` from GradScaler, as torch's fused ones do."""

NO_BACKWARD = -1
"""What `current_backward` returns outside of a backward pass."""


def current_backward() -> int:
    """The number of the backward pass that runs: layers called twice in one forward must count their samples once."""
    return torch._C._current_graph_task_id()


def local_shape_and_offset(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a DTensor's part on this rank and its place in the whole: DTensor has no method for it."""
    from torch.distributed.tensor._utils import (
        compute_local_shape_and_global_offset,  # takes a second to import
    )

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def flattened(mesh: DeviceMesh) -> DeviceMesh:
    """A mesh of one dimension with the same ranks: hybrid sharding needs one process group for all of them."""
    return mesh._flatten()


def padding_of(module: Convolution) -> list[int]:
    """A convolution's padding as `F.pad` takes it, with ``padding="same"`` resolved."""
    return module._reversed_padding_repeated_twice
