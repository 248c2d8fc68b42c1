"""What rule="orthogonal" makes of the curvature F = Σ S' ⊗ H' of a matrix: its row and column means."""

from collections.abc import Sequence

from torch import Tensor

from .roles import Role
from .views import Pair, View, mean_over

ORTHOGONAL_DAMPING = 0.1
"""Added to the row and column means of F, whose own mean is one, before an orthogonal update is divided by them."""


def divisors(role: Role, pairs: Sequence[Pair], view: View) -> Sequence[Pair]:
    """Pairs whose sum of products divides a parameter's update, up to the damping of its group.

    They are S' and H' themselves of a calibrated parameter, √(row means of F) of a rooted one, and
    √((row means of F + 0.1) (column means of F + 0.1)) of one that is orthogonal. Groups of rows, and the matrices of
    a stack, have means each.

    Args:
        view: which of the axes that S' and H' broadcast to are rows.
    """
    if role.name == "calibrated":
        return pairs
    shape, axes = view.shape, view.matrix_axes
    rows = _sum([_mean_product(pair, (*shape[:axes], *(1,) * len(shape[axes:]))) for pair in pairs])
    if role.name == "rooted":
        return [(rows.sqrt(), rows.new_ones((1,) * rows.dim()))]
    columns = _sum([_mean_product(pair, (*shape[: axes - 1], 1, *shape[axes:])) for pair in pairs])
    return [((columns + ORTHOGONAL_DAMPING).sqrt(), (rows + ORTHOGONAL_DAMPING).sqrt())]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], start=tensors[0])


def _mean_product(pair: Pair, shape: tuple[int, ...]) -> Tensor:
    """The mean of S' H' over the axes in which the shape has 1; of what one of them has alone, before the product."""
    H, S = pair
    own_H = mean_over(H, tuple(map(max, shape, S.shape)))
    own_S = mean_over(S, tuple(map(max, shape, H.shape)))
    return mean_over(own_S * own_H, shape)
