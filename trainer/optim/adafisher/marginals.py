"""What rule="orthogonal" makes of the curvature F = Σ S' ⊗ H' of a matrix: its row and column means."""

from collections.abc import Sequence

from torch import Tensor

from .roles import Role
from .views import Pair, mean_over

ORTHOGONAL_DAMPING = 0.1
"""Added to the row and column means of F, whose own mean is one, before an orthogonal update is divided by them."""


def divisors(role: Role, pairs: Sequence[Pair]) -> Sequence[Pair]:
    """Pairs whose sum of products divides a parameter's update, up to the damping of its group.

    They are S' and H' themselves of a calibrated parameter, √(row means of F) of a rooted one, and
    √((row means of F + 0.1) (column means of F + 0.1)) of one that is orthogonal. Groups of rows that have an H each
    have means each.
    """
    if role.name == "calibrated":
        return pairs
    factors = [_by_rows_and_columns(pair) for pair in pairs]
    rows = _sum([row * mean_over(column, row.shape) for row, column in factors])
    if role.name == "rooted":
        return [(rows.sqrt(), rows.new_ones((1,) * rows.dim()))]
    columns = _sum([column * mean_over(row, column.shape) for row, column in factors])
    return [((columns + ORTHOGONAL_DAMPING).sqrt(), (rows + ORTHOGONAL_DAMPING).sqrt())]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], start=tensors[0])


def _by_rows_and_columns(pair: Pair) -> Pair:
    """S and H; of an embedding, whose rows are what it looks up, H and S."""
    H, S = pair
    return (H, S) if S.shape[0] == 1 < H.shape[0] else (S, H)
