"""What this package uses of torch beyond its documented interface, each with the reason.

``tests/optim/adafisher/test_torch_private.py`` checks by name that it is there and does what is relied on.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = [
    "CALL",
    "NO_BACKWARD",
    "BatchNorm",
    "Convolution",
    "InstanceNorm",
    "TransposedConvolution",
    "adds_to_gradient",
    "any_number_of_graphs",
    "called_module",
    "calling_module",
    "cpu_multiplies_bfloat16",
    "current_backward",
    "disable_compiler",
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
    "foreach_sub_",
    "is_transformed",
    "is_view",
    "local_shape_and_offset",
    "padding_of",
    "set_stance",
    "stance",
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
foreach_clamp_max, foreach_sub_ = torch._foreach_clamp_max, torch._foreach_sub_

disable_compiler = torch._disable_dynamo
"""`torch.compiler.disable` would import the compiler, which takes a second, along with this package."""

CALL = "_compiled_call_impl"
"""The attribute of a module that is called in place of it, where `Module.compile` keeps the compiled module. Unlike
hooks, it is not copied, saved, scripted, exported or compiled into another module's graph."""

NO_BACKWARD = -1
"""What `current_backward` returns outside of a backward pass."""


def current_backward() -> int:
    """The number of the backward pass that runs: layers called twice in one forward must count their samples once."""
    return torch._C._current_graph_task_id()


def adds_to_gradient(node: Any) -> bool:
    """Whether the backward pass that runs will reach a node that adds to the gradient of a parameter.

    `torch.autograd.grad` does not, whose gradients are the caller's: of a penalty, say, or with respect to inputs.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # it does not tell of leaves that torch.autograd.grad was asked for
        return False


def is_transformed() -> bool:
    """Whether a function of `torch.func` runs, so that tensors are not what they seem to be."""
    return torch._C._functorch.maybe_current_level() is not None


def calling_module() -> nn.Module | None:
    """The module that has just called what its `CALL` is: the replica, where `nn.DataParallel` copied the attribute."""
    frame = sys._getframe(2)
    return frame.f_locals.get("self") if frame.f_code.co_name == "_wrapped_call_impl" else None


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another one. Changed in place it has another history, which knows of no hooks."""
    return tensor._is_view()


def stance() -> Any:
    """How compiled functions are called: what `torch.compiler.set_stance` set."""
    from torch._dynamo import eval_frame

    return eval_frame._stance


def set_stance(value: Any) -> None:
    """Sets what has the attributes of a stance, and may decide at each call: torch's own are the same for all."""
    from torch._dynamo import eval_frame

    eval_frame._stance = value


def called_module() -> tuple[bool, nn.Module | None]:
    """Whether a compiled function is asking for the stance because it is called; the module that it is of, if any."""
    frame = sys._getframe(1)
    for _ in range(6):
        if frame.f_code.co_name == "compile_wrapper" and "fn" in frame.f_locals:
            function = frame.f_locals["fn"]
            function = getattr(function, "__wrapped__", function)
            owner = getattr(function, "__self__", function)
            return True, owner if isinstance(owner, nn.Module) else None
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False, None


def any_number_of_graphs() -> AbstractContextManager[None]:
    """Where a function may be compiled for any number of different arguments: else torch raises at the ninth."""
    from torch._dynamo.utils import disable_cache_limit

    return disable_cache_limit()


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


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; without, they are far slower than those of floats."""
    return torch.cpu._is_avx512_bf16_supported()
