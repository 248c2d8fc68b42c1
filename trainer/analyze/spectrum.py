"""The two-dimensional Fourier transform of a factor before and after noise, and its diagonal's signal-to-noise ratio.

There are two definitions of the ratio, mean diag² over another mean square:

* ``signal_to_noise_db``: of all entries off the diagonal, without noise.
* ``published_signal_to_noise_db``: the sum over the upper triangle after noise, over all N² entries, as the figures of
  arXiv 2405.16397 have it. Without noise it is greater by 10 log₁₀(2N / (N − 1)), 3 dB for a large factor; noise
  bounds it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.analyze.factors import heading, of_layers
from trainer.analyze.gershgorin import SEED, with_noise
from trainer.analyze.loaded_run import Finding, LoadedRun, Settings


class Spectrum(NamedTuple):
    """Of a factor [d, d]."""

    before: Tensor
    """[d, d], magnitudes."""
    after: Tensor
    """[d, d], with noise off the factor's diagonal."""
    ratio: float | None
    """Signal to noise in dB."""
    published_ratio: float | None
    """As published, in dB."""


def magnitudes(matrix: Tensor) -> Tensor:
    """Magnitudes of the 2-D discrete Fourier transform, [d, d] -> [d, d], with frequency zero in the middle."""
    return torch.fft.fftshift(torch.fft.fft2(matrix)).abs()


def signal_to_noise(matrix: Tensor) -> float | None:
    """10 log₁₀(mean diag² / mean off-diag²) in dB; None if all entries on or off the diagonal are zero."""
    square = matrix.double().square()
    diagonal = square.diagonal().sum().item()
    rest = square.sum().item() - diagonal
    size = len(matrix)
    if size == 1 or rest <= 0 or diagonal == 0:
        return None
    return 10 * math.log10((diagonal / size) / (rest / (size * (size - 1))))


def published_signal_to_noise(noisy: Tensor) -> float | None:
    """10 log₁₀(mean diag² / (Σ of the squares above the diagonal / N²)) in dB of a matrix with noise; None as above."""
    square = noisy.double().square()
    diagonal, rest, size = square.diagonal().sum().item(), square.triu(1).sum().item(), len(noisy)
    return 10 * math.log10((diagonal / size) / (rest / size**2)) if diagonal and rest else None


def spectrum(factor: Tensor, sigma: float) -> Spectrum:
    """Of a factor [d, d], with noise of this standard deviation."""
    noisy = with_noise(factor, sigma, torch.Generator().manual_seed(SEED))
    ratios = signal_to_noise(factor), published_signal_to_noise(noisy)
    return Spectrum(magnitudes(factor), magnitudes(noisy), *ratios)


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """Spectrum and signal-to-noise ratios of each factor."""
    rows, shown = [], {}
    for key, factor in of_layers(run, settings).items():
        shown[key] = found = spectrum(factor, settings.sigma)
        ratios = {"signal_to_noise_db": found.ratio, "published_signal_to_noise_db": found.published_ratio}
        rows.append({**heading(key, factor), **ratios})
    return Finding(rows, shown)
