"""The updates of `update`, each compiled to one graph over all parameters of a group.

Numbers that a schedule changes are tensors to the graph, so that they do not recompile it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import update
from ._torch_private import any_number_of_graphs
from .mean_squares import factor_dtype


def normalized_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    *lists: Any,
    lr: float,
    beta: float,
    weight_decay: float,
    sums: Tensor | None = None,
) -> None:
    """`update.normalized_update`."""
    changed = map(_with_axes, (params, grads, exp_avgs))
    rates = _scalars(params[0], lr=lr, beta=beta, weight_decay=weight_decay)
    _run(update.normalized_update, *changed, *lists, sums=sums, **rates)


def bias_corrected_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    *lists: Any,
    corrections: Sequence[float],
    lr: float,
    beta: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`update.bias_corrected_update`."""
    changed = map(_with_axes, (params, grads, exp_avgs))
    rates = _scalars(params[0], lr=lr, beta=beta, weight_decay=weight_decay)
    different = {value: _scalar(value, params[0]) for value in {*corrections}}
    rates["corrections"] = [different[value] for value in corrections]
    _run(update.bias_corrected_update, *changed, *lists, decoupled=decoupled, **rates)


def sum_of_squares(grads: list[Tensor], *lists: Any, beta: float) -> Tensor:
    """`update.sum_of_squares`."""
    return _run(update.sum_of_squares, grads, *lists, beta=_scalar(beta, grads[0]))


def _with_axes(tensors: list[Tensor]) -> list[Tensor]:
    """Views with an axis of 0-d tensors: up to torch 2.13, what a graph writes into 0-d doubles on a CPU is lost."""
    return [tensor if tensor.dim() else tensor.view(1) for tensor in tensors]


def _scalars(param: Tensor, **values: float) -> dict[str, Any]:
    return {name: _scalar(value, param) for name, value in values.items()}


def _scalar(value: float, param: Tensor) -> Tensor:
    return torch.tensor(value, dtype=factor_dtype(param.dtype), device=param.device)


def _run(function: Callable[..., Any], *lists: Any, **options: Any) -> Any:
    with any_number_of_graphs():  # each group has its own
        return _compiled(function)(*lists, **options)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)
