"""Mean squares on a GPU, in Triton: one pass over a matrix, at the speed of its memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 2**10  # a few for each multiprocessor
_ROWS = 32  # that a program has in registers at a time


@triton.jit(do_not_specialize=["rows", "rows_each"])
def _sum(x, sums, rows, columns, rows_each, MOMENTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, rows)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for at in range(first, last, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & (column < columns)[None, :]
        value = tl.load(x + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += value * value
        if MOMENTS == 2:
            total += value
    own = sums + tl.program_id(1) * MOMENTS * columns + column
    tl.store(own, tl.sum(squares, 0), mask=column < columns)
    if MOMENTS == 2:
        tl.store(own + columns, tl.sum(total, 0), mask=column < columns)


def moments(rows: Tensor, count: int = 1) -> Tensor:
    """Means of x², and of x if ``count`` is 2, over the rows of a contiguous matrix: [N, D] -> [count, D].

    In float32 and in a fixed order.
    """
    height, columns = rows.shape
    width = min(128, triton.next_power_of_2(columns))
    across = -(-columns // width)
    each = -(-height // max(1, _PROGRAMS // across))
    each = -(-each // _ROWS) * _ROWS
    sums = torch.empty(-(-height // each), count, columns, device=rows.device)
    with torch.cuda.device_of(rows):  # where Triton launches
        _sum[(across, len(sums))](rows, sums, height, columns, each, MOMENTS=count, ROWS=_ROWS, COLUMNS=width)
    return sums.sum(0).div_(height)
