"""Means of squares over the rows of a tensor: in cache on a CPU, in one pass and few launches on a GPU."""

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

_BLOCK = 2**18  # elements: 1 MiB of float32 stays in a core's cache
_LARGE = 2**23  # elements
_FOR_KERNEL = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for every parameter but those in float64: squares of half-precision gradients overflow."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_rows(x: Tensor) -> Tensor:
    """Σ x² over the first axis without a temporary of x's size: [N, ...] -> [...], strides kept."""
    if x.device.type != "cpu":
        order = sorted(range(1, x.dim()), key=x.stride, reverse=True)
        total = _sum_over(x.permute(0, *order), [0])  # in the order of memory
        return total.permute(*(order.index(axis) for axis in range(1, x.dim())))
    total = torch.zeros_like(x[0], dtype=factor_dtype(x.dtype))
    if 16 * total.numel() >= _BLOCK:
        for row in x:
            row = row.to(total.dtype)
            total.addcmul_(row, row)
    else:
        for rows in x.split(_BLOCK // max(1, total.numel())):
            total += rows.to(total.dtype).square().sum(0)
    return total


def mean_last(x: Tensor) -> Tensor:
    """Mean of x² over every axis but the last: [..., D] -> [D]."""
    rows = x.reshape(-1, x.shape[-1])
    if _is_for_kernel(rows):
        return _kernel().moments(rows)[0]
    return sum_rows(rows) / rows.shape[0]


def mean_channels(x: Tensor) -> Tensor:
    """Mean of x² over every axis but axis 1: [N, C, ...] -> [C]."""
    if x.dim() == 2 or not x.is_contiguous():
        return mean_last(x.movedim(1, -1))
    return _sum_over(x.flatten(2), [2]).sum(0) / (x.numel() / x.shape[1])


def variance_channels(x: Tensor) -> Tensor:
    """Variance over every axis but axis 1: [N, C, ...] -> [C]."""
    rows = x.movedim(1, -1)
    if _is_for_kernel(rows):
        square, mean = _kernel().moments(rows.reshape(-1, rows.shape[-1]), 2)
    elif x.is_cuda:
        return torch.batch_norm_stats(x, 1e-30)[1].pow(-2)  # of no variance and no ε it would give zero
    else:
        mean = rows.mean(tuple(range(x.dim() - 1)), dtype=factor_dtype(x.dtype))
        square = mean_channels(x)
    return (square - mean.square()).clamp_(min=0)


def _is_for_kernel(rows: Tensor) -> bool:
    """Whether a kernel's faster pass makes up for its slower launch."""
    return (
        rows.is_cuda
        and rows.numel() >= _LARGE
        and rows.is_contiguous()
        and rows.dtype in _FOR_KERNEL
        and has_triton()
    )


def _kernel() -> ModuleType:
    from . import mean_squares_triton

    return mean_squares_triton


def _sum_over(x: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes, dtype=factor_dtype(x.dtype)).square()
