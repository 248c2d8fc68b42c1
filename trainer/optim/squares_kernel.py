"""Sums of squares on a GPU, in Triton: one pass over a matrix, at the speed of its memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 2**10  # a few for each multiprocessor
_ROWS = 32  # that a program has in registers at a time


@triton.jit(do_not_specialize=["rows", "rows_each"])
def _sum_squares(x, sums, rows, columns, rows_each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(first, last, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & (column < columns)[None, :]
        value = tl.load(x + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += value * value
    tl.store(sums + tl.program_id(1) * columns + column, tl.sum(total, 0), mask=column < columns)


def sum_squares(rows: Tensor) -> Tensor:
    """Σ x² over the rows of a contiguous matrix, [N, D] -> [D], in float32 and in a fixed order."""
    count, columns = rows.shape
    width = min(128, triton.next_power_of_2(columns))
    across = -(-columns // width)
    each = -(-count // max(1, _PROGRAMS // across))
    each = -(-each // _ROWS) * _ROWS
    sums = torch.empty(-(-count // each), columns, device=rows.device)
    _sum_squares[(across, len(sums))](rows, sums, count, columns, each, ROWS=_ROWS, COLUMNS=width)
    return sums.sum(0)
