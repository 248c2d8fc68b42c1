"""How a parameter sees the factors of its layer: shapes in which both broadcast."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""H and S of one use of a parameter, in shapes that broadcast against it."""


class View(NamedTuple):
    """How a parameter sees its factors: ``param.view(shape)`` broadcasts against both.

    Several parameters of a layer may see the same factors: those of a linear layer are H ``[columns + 1]`` and S
    ``[rows]``, of which the weight sees ``View((rows, columns), (rows, 1), (1, columns), S_size=(rows,),
    H_size=(columns + 1,), columns=slice(0, columns))`` and the bias the last entry of H.
    """

    shape: tuple[int, ...]
    """Of the parameter."""
    S_shape: tuple[int, ...]
    """In which S broadcasts against it."""
    H_shape: tuple[int, ...]
    """In which the parameter's part of H broadcasts against it."""
    S_size: tuple[int, ...]
    """In which S is kept in the optimizer's state."""
    H_size: tuple[int, ...]
    """In which H is kept."""
    columns: slice | None = slice(None)
    """The parameter's part of H's last axis; None for a parameter that multiplies ones: its H is one entry, 1."""
    row_axes: int = 1
    """Leading axes of ``shape`` that are one axis in the parameter: 2 where ``shape`` parts groups from their rows."""
    is_stack: bool = False
    """Whether the first axis of three counts matrices, each with S and H of its own."""

    @property
    def matrix_axes(self) -> int:
        """Leading axes of ``shape`` that are the rows of a matrix; the rest are its columns."""
        return 2 if self.is_stack else self.row_axes

    def pair(self, H: Tensor, S: Tensor) -> Pair:
        """Views of the parameter's part of both factors, in shapes that broadcast."""
        return (H if self.columns is None else H[..., self.columns]).view(self.H_shape), S.view(self.S_shape)

    def S_has_rows(self, param: Tensor) -> bool:
        """Whether S has one entry for each row of the parameter, so that both can be sharded in the same way."""
        return (
            param.dim() > 0
            and self.S_size == (param.shape[0],)
            and math.prod(self.S_shape[: self.row_axes]) == param.shape[0]
        )


def matrix_views(out: int, rest: tuple[int, ...], *, bias: bool, groups: int = 1) -> dict[str, View]:
    """Views of a weight ``[out, *rest]`` and its bias ``[out]``: rows have S, columns H, the bias is H's last column.

    With groups there is an H for each of them, that is for ``out / groups`` rows.
    """
    columns = math.prod(rest)
    rows, split = ((out,), ()) if groups == 1 else ((groups, out // groups), (groups,))
    S_shape = (*rows, *(1,) * len(rest))
    H_size = (*split, columns + bias)
    weight = slice(0, columns)
    views = {"weight": View((*rows, *rest), S_shape, (*split, 1, *rest), (out,), H_size, weight, len(rows))}
    if bias:
        shift = slice(columns, columns + 1)
        views["bias"] = View(rows, rows, (*split, 1), (out,), H_size, shift, len(rows))
    return views


def scale_view(shape: tuple[int, ...]) -> View:
    """An entry of H and one of S for every element."""
    size = (math.prod(shape),)
    return View(shape, shape, shape, size, size)


def shift_view(shape: tuple[int, ...]) -> View:
    """An entry of S for every element, and H = 1."""
    return View(shape, shape, (1,) * len(shape), (math.prod(shape),), (1,), None)


def gradient_view(param: Tensor, of_convolution: bool) -> View:
    """A parameter of no known layer: rows have S, columns H; a vector has S alone.

    Three axes that no convolution has are those of a stack of matrices, such as the experts of a mixture.
    """
    shape = tuple(param.shape)
    if len(shape) < 2:
        return shift_view(shape)
    if len(shape) == 3 and not of_convolution:
        stack, rows, columns = shape
        sizes = (stack * rows,), (stack, columns)
        return View(shape, (stack, rows, 1), (stack, 1, columns), *sizes, is_stack=True)
    ones = (1,) * (len(shape) - 1)
    return View(shape, (shape[0], *ones), (1, *shape[1:]), (shape[0],), (math.prod(shape[1:]),))


# The fallback: factors from the gradient ----------------------------------------------------------------------------


def gradient_means(square: Tensor, view: View) -> Pair:
    """Column and row means of g², linear in g², from which `gradient_factors` makes H and S."""
    square = square.view(view.shape)
    S = square if view.columns is None else mean_over(square, view.S_shape)
    return mean_over(square, view.H_shape), S.reshape(view.S_size)


def gradient_factors(columns: Tensor, rows: Tensor, view: View) -> Pair:
    """H and S of a parameter from its gradient: S = row means of g², H = column means of g² / mean of g².

    Each group, or matrix of a stack, is divided by its own mean. Of what has a row for every element S is all.
    H's entries that belong to other parameters are 1, the mean of the rest.
    """
    H = rows.new_ones(view.H_size)
    if view.columns is not None and view.H_shape != view.S_shape:
        columns = columns.reshape(H[..., view.columns].shape)
        tiny = torch.finfo(H.dtype).tiny  # an expert without tokens has no gradient
        H[..., view.columns] = columns / columns.mean(-1, keepdim=True).clamp(min=tiny)
    return H, rows


def mean_over(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mean of x over the axes in which the shape has 1."""
    axes = [axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] > 1]
    return x.mean(axes, keepdim=True) if axes else x
