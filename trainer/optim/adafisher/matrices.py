"""How the parameters of a group lie in memory, as matrices that the kernels of `update_triton` can walk."""

from functools import cache
from typing import NamedTuple


class Matrix(NamedTuple):
    """A part of a parameter in which S' ⊗ H' is an outer product. In elements, as the parameter lies in memory."""

    offset: int
    numel: int
    columns: int
    places: list[tuple[int, int]]
    """Of each use: where H' and S' begin."""
    strides: list[tuple[int, int, int, int]]
    """Of each use: of H' over rows and columns, of S' over rows and columns."""


def order_of(strides: tuple[int, ...]) -> list[int]:
    """The axes as they lie in memory."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


@cache
def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether what has this shape and these strides fills its memory without gaps."""
    expected = 1
    for axis in reversed(order_of(strides)):
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected *= shape[axis]
    return True


@cache
def matrices_of(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> list[Matrix]:
    """Splits what has this shape and is contiguous into as few matrices as possible.

    Args:
        strides: of H' and S' of each use by turns, over the axes of the shape.
    """
    if 0 in shape:
        return []
    axes: list[tuple[int, ...]] = []  # the size, and the stride of each factor
    for axis in zip(shape, *strides, strict=True):
        if axis[0] == 1:
            continue
        if axes and all(
            outer == inner * axis[0] for outer, inner in zip(axes[-1][1:], axis[1:], strict=True)
        ):
            axes[-1] = (axes[-1][0] * axis[0], *axis[1:])
        else:
            axes.append(axis)
    none = (0,) * len(strides)
    *outer, rows, columns = [*[(1, *none)] * (2 - len(axes)), *axes]
    places = [none]
    for size, *steps in outer:
        places = [
            tuple(at + i * step for at, step in zip(place, steps, strict=True))
            for place in places
            for i in range(size)
        ]
    numel = rows[0] * columns[0]
    by_use = [(*rows[k : k + 2], *columns[k : k + 2]) for k in range(1, len(rows), 2)]
    return [
        Matrix(
            number * numel,
            numel,
            columns[0],
            [*zip(place[::2], place[1::2], strict=True)],
            [(H_row, H_column, S_row, S_column) for H_row, S_row, H_column, S_column in by_use],
        )
        for number, place in enumerate(places)
    ]
