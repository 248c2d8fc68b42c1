"""The updates of `update`, each compiled to one graph over all parameters of a group.

Numbers that a schedule changes are tensors to the graph, so that they do not recompile it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import update
from .mean_squares import factor_dtype


def normalized_update(params: list[Tensor], *lists: Any, lr: float, **options: Any) -> None:
    """`update.normalized_update`."""
    _compiled(update.normalized_update)(params, *lists, lr=_scalar(lr, params[0]), **options)


def bias_corrected_update(
    params: list[Tensor], *lists: Any, corrections: Sequence[float], lr: float, **options: Any
) -> None:
    """`update.bias_corrected_update`."""
    scalars = {value: _scalar(value, params[0]) for value in {lr, *corrections}}
    options |= {"corrections": [scalars[value] for value in corrections], "lr": scalars[lr]}
    _compiled(update.bias_corrected_update)(params, *lists, **options)


def sum_of_squares(*lists: Any, beta: float) -> Tensor:
    """`update.sum_of_squares`."""
    return _compiled(update.sum_of_squares)(*lists, beta=beta)


def _scalar(value: float, param: Tensor) -> Tensor:
    return torch.tensor(value, dtype=factor_dtype(param.dtype), device=param.device)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)
