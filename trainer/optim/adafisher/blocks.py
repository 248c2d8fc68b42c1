"""Where the blocks of orthogonal matrices lie: those of equal shape together, whatever parameter they are of.

Rows are those of the whole matrix, so that what a block is does not depend on the number of ranks.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import dtensor
from .state import Tracked


class Matrix(NamedTuple):
    """A parameter as a matrix."""

    borders: list[int]
    """The rows with which its blocks begin, and their number at the end."""
    columns: int
    inner: int
    """Rows for each entry of the parameter's axis 0: more than one of a stack of matrices."""
    here: range
    """The rows that this rank holds."""
    cuts: set[int]
    """The rows with which the shards of other ranks begin."""

    def view(self, tensor: Tensor) -> Tensor:
        """[rows here, ...] of a tensor of the parameter's shape."""
        local = dtensor.local_tensor(tensor)
        return local if self.inner == 1 else local.view(len(self.here), *local.shape[2:])

    def blocks(self) -> list[range]:
        """Of all ranks."""
        return [range(start, stop) for start, stop in pairwise(self.borders)]

    def own(self, block: range) -> range:
        """The rows of a block that this rank holds."""
        return range(max(block.start, self.here.start), min(block.stop, self.here.stop))

    def straddles(self, block: range) -> bool:
        """Whether several ranks hold rows of a block."""
        return any(cut in block[1:] for cut in self.cuts)


def matrix_of(tracked: Tracked) -> Matrix:
    """The matrix that a parameter is, whose role says in which blocks."""
    param, borders = tracked.param, [0, *accumulate(tracked.role.blocks)]
    inner = borders[-1] // param.shape[0]
    rows, cuts = slice(0, param.shape[0]), set[int]()
    if dtensor.is_sharded(param):
        rows, cuts = dtensor.rows(param), {row * inner for row in dtensor.first_rows(param)}
    here = range(rows.start * inner, rows.stop * inner)
    return Matrix(borders, param.numel() // borders[-1], inner, here, cuts)


class Run(NamedTuple):
    """Blocks of a parameter that follow each other, all of them on this rank; or one of which it has some rows."""

    owner: int
    """The parameter, as an index."""
    rows: range
    straddles: bool


class Bucket(NamedTuple):
    """All blocks of one shape with rows on this rank."""

    height: int
    """Rows of a block."""
    columns: int
    runs: list[Run]

    @property
    def owners(self) -> list[int]:
        """The parameter of each block."""
        return [run.owner for run in self.runs for _ in range(len(run.rows) // self.height)]


def buckets_of(matrices: Sequence[Matrix]) -> list[Bucket]:
    """Sorts the blocks of matrices by their shape."""
    buckets: dict[tuple[int, int], list[Run]] = {}
    for owner, matrix in enumerate(matrices):
        for block in matrix.blocks():
            if not matrix.own(block):
                continue
            runs = buckets.setdefault((len(block), matrix.columns), [])
            straddles = matrix.straddles(block)
            last = runs[-1] if runs and not straddles else None
            if last and (last.owner, last.rows.stop, last.straddles) == (owner, block.start, False):
                runs[-1] = Run(owner, range(last.rows.start, block.stop), False)
            else:
                runs.append(Run(owner, block, straddles))
    return [Bucket(*shape, runs) for shape, runs in buckets.items()]


def divisors_of(
    bucket: Bucket, matrices: Sequence[Matrix], factors: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """What the rows and the columns of each block are divided by: [blocks, rows, 1] and [blocks, 1, columns].

    Rows of other ranks are divided by infinity, so that they count for nothing.

    Args:
        factors: of each matrix, its columns and its rows, all of them.
    """
    of_rows, of_columns = [], []
    for owner, rows, straddles in bucket.runs:
        column, row = (factor.reshape(-1) for factor in factors[owner])
        part = row[rows.start : rows.stop]
        if straddles:
            index = torch.arange(rows.start, rows.stop, device=row.device)
            here = matrices[owner].here
            part = part.masked_fill((index < here.start) | (index >= here.stop), torch.inf)
        groups = column.view(-1, bucket.columns)  # a convolution in groups has columns for each
        index = torch.arange(rows.start, rows.stop, bucket.height, device=row.device)
        of_rows.append(part)
        of_columns.append(groups[index * len(groups) // len(row)])
    return [torch.cat(of_rows).view(-1, bucket.height, 1), torch.cat(of_columns).unsqueeze(1)]
