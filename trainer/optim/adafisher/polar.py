"""Polar factors of matrices by a Newton-Schulz iteration: their singular vectors, with all singular values near one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dtensor
from ._torch_private import cpu_multiplies_bfloat16

Quintic = tuple[float, float, float]
"""a, b, c of X ← a X + (b A + c A²) X, where A = X Xᵀ."""

POLAR_EXPRESS: Sequence[Quintic] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Four steps, each the best one after those before it (Polar Express, arXiv 2505.16932)."""

_MARGIN = 1.02  # by which singular values stay under one in spite of rounding
_TINY = 1e-30  # divides what is zero
_WORTH_BFLOAT16 = 64  # side under which a CPU multiplies float32 faster
_WIDE = 2  # columns for each row from which products of rows x rows are fewer


def polar_factor(
    matrices: Tensor, steps: Sequence[Quintic] = POLAR_EXPRESS, margin: float = _MARGIN
) -> Tensor:
    """U Vᵀ of every U Σ Vᵀ, nearly: what is below a thousandth of the norm comes out smaller; zeros stay zeros.

    Args:
        matrices: [count, rows, columns].
        steps: coefficients of the iteration, which starts with a spectral norm of at most one.
        margin: further divides the matrices at the start.

    Returns:
        [count, rows, columns], in the dtype that was multiplied in.
    """
    X = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    norms = torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True)
    X = (X / (margin * norms).clamp_(min=_TINY)).to(product_dtype(X))
    if X.shape[2] >= _WIDE * X.shape[1] and _may_square(X):
        X = torch.bmm(_factor_of_gram(torch.bmm(X, X.mT), steps), X)
    else:
        for a, b, c in steps:
            gram = torch.bmm(X, X.mT)
            X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if matrices.shape[1] > matrices.shape[2] else X


def _may_square(X: Tensor) -> bool:
    """Whether the iteration may be on X Xᵀ, in place: a DTensor's diagonal is none of its own memory."""
    is_plain = not dtensor.is_dtensor(X)
    return is_plain and X.dtype == torch.float32 and not torch.are_deterministic_algorithms_enabled()


def _factor_of_gram(gram: Tensor, steps: Sequence[Quintic]) -> Tensor:
    """Q of the polar factor Q X, by the same iteration on A = X Xᵀ: A ← P A P, Q ← P Q, where P = a I + b A + c A².

    Squares of singular values take twice their digits, of which float32 has enough and bfloat16 has not. Nor is it done
    under `torch.use_deterministic_algorithms`: sums in another order make more of a difference here.

    Args:
        gram: [count, rows, rows].
    """
    A, Q = gram, None
    for i, (a, b, c) in enumerate(steps):
        P = torch.baddbmm(A, A, A, beta=b, alpha=c)
        P.diagonal(dim1=1, dim2=2).add_(a)
        Q = P if Q is None else torch.bmm(P, Q)
        if i + 1 < len(steps):
            A = torch.bmm(torch.bmm(P, A), P)
    assert Q is not None
    return Q


def product_dtype(matrices: Tensor) -> torch.dtype:
    """What products of matrices [..., rows, columns] are taken in: bfloat16 where that is fast, else float32.

    Doubles stay doubles, and under `torch.use_deterministic_algorithms` floats stay floats.
    """
    if matrices.dtype == torch.float64:
        return torch.float64
    if torch.are_deterministic_algorithms_enabled():
        return torch.float32
    if matrices.is_cuda:
        fast = torch.cuda.get_device_capability(matrices.device) >= (8, 0)
    else:
        is_cpu = matrices.device.type == "cpu"
        fast = is_cpu and min(matrices.shape[-2:]) >= _WORTH_BFLOAT16 and cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32
