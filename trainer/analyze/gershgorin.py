"""How close a factor's eigenvalues are to its diagonal: Gershgorin's discs, and the effect of noise off the diagonal.

Every eigenvalue of a matrix is in one of the discs around its diagonal entries, whose radius is the sum of the
absolute values of the other entries in its row. By Weyl's inequality symmetric noise E moves no eigenvalue by more
than ‖E‖₂.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analyze.factors import heading, of_layers
from trainer.analyze.loaded_run import Finding, LoadedRun, Settings

SEED = 0


class Discs(NamedTuple):
    """Gershgorin's discs and the eigenvalues of a symmetric matrix [d, d]: three vectors [d]."""

    centres: Tensor
    radii: Tensor
    eigenvalues: Tensor
    """In ascending order."""


def discs(matrix: Tensor) -> Discs:
    """The discs of a symmetric matrix [d, d], computed in float64, which small eigenvalues need."""
    matrix = matrix.double()
    diagonal = matrix.diagonal()
    return Discs(diagonal, matrix.abs().sum(1) - diagonal.abs(), torch.linalg.eigvalsh(matrix))


def with_noise(matrix: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A symmetric matrix [d, d] with symmetric N(0, σ²) noise added off the diagonal: float64, on the CPU."""
    noise = torch.randn(matrix.shape, generator=generator, dtype=torch.float64).triu(1) * sigma
    return matrix.double().cpu() + noise + noise.T


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """Discs and eigenvalues of each factor before and after noise."""
    rows, shown = [], {}
    for key, factor in of_layers(run, settings).items():
        generator = torch.Generator().manual_seed(SEED)
        before = discs(factor.cpu())
        after = discs(with_noise(factor, settings.sigma, generator))
        shift = (after.eigenvalues - before.eigenvalues).abs().max().item()
        largest = before.eigenvalues[-1].item()
        rows.append(
            {
                **heading(key, factor),
                "mean_diagonal": before.centres.mean().item(),
                "mean_radius": before.radii.mean().item(),
                "largest_eigenvalue": largest,
                "largest_shift": shift,
                "relative_shift": shift / largest if largest else None,
                "eigenvalues": before.eigenvalues.tolist(),
                "eigenvalues_with_noise": after.eigenvalues.tolist(),
            }
        )
        shown[key] = before, after
    return Finding(rows, shown)
