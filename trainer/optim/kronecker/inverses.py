"""Damped inverses and roots of factors, and their averages."""

import torch
from torch import Tensor


def damped_inverse(factor: Tensor, damping: Tensor | float) -> Tensor:
    """(F + λ I)⁻¹ of a positive semidefinite F, [d, d], and λ > 0."""
    damped = factor.clone()
    damped.diagonal().add_(damping)
    root, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        return torch.cholesky_inverse(root)
    # rounding made F less than semidefinite
    values, basis = torch.linalg.eigh(factor.double())
    return (basis / (values.clamp(min=0) + damping) @ basis.mT).to(factor.dtype)


def inverse_root(statistics: Tensor, order: int, damping: float) -> Tensor:
    """(L + ε I)^(-1 / order) of a positive semidefinite L, [d, d], and ε > 0."""
    values, basis = torch.linalg.eigh(statistics.double())
    # eigenvalues that are zero but for rounding would be amplified as if they were known
    floor = torch.finfo(statistics.dtype).eps * values[-1].clamp(min=0)
    return (basis * (values.clamp(min=floor) + damping).pow(-1 / order) @ basis.mT).to(statistics.dtype)


def average(old: Tensor, new: Tensor, decay: float, count: int) -> None:
    """Takes the ``count``-th value into an average in which old values have the weight ``decay``, in place.

    The first ones have equal weights, so that the average is not of what it started from (Martens and Grosse 2015).
    """
    old.lerp_(new.to(old.device, old.dtype), 1 - min(decay, 1 - 1 / count))
