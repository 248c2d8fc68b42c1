"""The two-dimensional Fourier transform of a factor, and the signal-to-noise ratio of its diagonal."""

import math

import torch
from torch import Tensor

from trainer.analyze.factors import heading, of_layers
from trainer.analyze.loaded_run import Finding, LoadedRun, Settings


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


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """Spectrum and signal-to-noise ratio of each factor."""
    factors = of_layers(run, settings)
    rows = [
        {**heading(key, factor), "signal_to_noise_db": signal_to_noise(factor)}
        for key, factor in factors.items()
    ]
    return Finding(rows, {key: (factor, magnitudes(factor)) for key, factor in factors.items()})
