"""A factor as a picture: its two-dimensional Fourier transform, and how far the diagonal stands out."""

import math

import torch
from torch import Tensor

from trainer.analyze.factors import heading, of_layers
from trainer.analyze.loaded_run import Finding, LoadedRun, Settings


def magnitudes(matrix: Tensor) -> Tensor:
    """Of the 2-D discrete Fourier transform, [d, d] -> [d, d], frequency zero in the middle."""
    return torch.fft.fftshift(torch.fft.fft2(matrix)).abs()


def signal_to_noise(matrix: Tensor) -> float | None:
    """10 log₁₀(mean diag² / mean off-diag²) in dB; None where all off the diagonal is zero, or nothing there."""
    square = matrix.double().square()
    diagonal = square.diagonal().sum().item()
    rest = square.sum().item() - diagonal
    size = len(matrix)
    if size == 1 or rest <= 0 or diagonal == 0:
        return None
    return 10 * math.log10((diagonal / size) / (rest / (size * (size - 1))))


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """Spectrum and signal-to-noise ratio of every factor."""
    factors = of_layers(run, settings)
    rows = [
        {**heading(key, factor), "signal_to_noise_db": signal_to_noise(factor)}
        for key, factor in factors.items()
    ]
    return Finding(rows, {key: (factor, magnitudes(factor)) for key, factor in factors.items()})
