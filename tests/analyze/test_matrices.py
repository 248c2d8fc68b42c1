"""Gershgorin's discs, noise, spectrum and signal-to-noise ratio of matrices that are known by hand."""

import math

import pytest
import torch

from trainer.analyze.factors import diagonal_energy
from trainer.analyze.gershgorin import discs, with_noise
from trainer.analyze.spectrum import magnitudes, published_signal_to_noise, signal_to_noise, spectrum

MATRIX = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_discs_of_a_known_matrix() -> None:
    found = discs(MATRIX)
    assert found.centres.tolist() == [2, 2, 2]
    assert found.radii.tolist() == [1, 2, 1]
    assert found.eigenvalues.tolist() == pytest.approx([2 - math.sqrt(2), 2, 2 + math.sqrt(2)])


def test_every_eigenvalue_lies_in_a_disc() -> None:
    root = torch.randn(20, 20)
    found = discs(root @ root.T)
    distances = (found.eigenvalues[:, None] - found.centres).abs()
    assert (distances <= found.radii).any(1).all()


def test_noise_is_symmetric_off_the_diagonal_and_of_its_size() -> None:
    noise = with_noise(torch.zeros(200, 200), 0.5, generator())
    assert torch.equal(noise, noise.T)
    assert not noise.diagonal().any()
    upper = noise[torch.ones_like(noise).triu(1).bool()]
    assert upper.mean().item() == pytest.approx(0, abs=0.02)
    assert upper.std().item() == pytest.approx(0.5, rel=0.02)


def test_noise_moves_eigenvalues_by_no_more_than_its_norm() -> None:
    """Weyl's inequality."""
    root = torch.randn(30, 30, dtype=torch.float64)
    matrix = root @ root.T
    noisy = with_noise(matrix, 0.1, generator())
    shift = (discs(noisy).eigenvalues - discs(matrix).eigenvalues).abs().max()
    assert 0 < shift <= torch.linalg.matrix_norm(noisy - matrix, 2)


def test_share_of_energy_on_the_diagonal() -> None:
    assert diagonal_energy(MATRIX) == pytest.approx(12 / 16)
    assert diagonal_energy(torch.ones(5, 5)) == pytest.approx(1 / 5)


def test_signal_to_noise_ratio() -> None:
    assert signal_to_noise(MATRIX) == pytest.approx(10 * math.log10(4 / (4 / 6)))
    assert signal_to_noise(torch.ones(7, 7)) == pytest.approx(0)
    assert signal_to_noise(torch.eye(3)) is None
    assert signal_to_noise(torch.ones(1, 1)) is None


def test_spectrum() -> None:
    """A constant is frequency zero alone, which is in the middle; a diagonal is the antidiagonal through it."""
    constant = magnitudes(torch.ones(5, 5))
    assert constant[2, 2].item() == pytest.approx(25)
    assert constant.sum().item() == pytest.approx(25, abs=1e-4)
    expected = 5 * torch.eye(5).flip(0)
    torch.testing.assert_close(magnitudes(torch.eye(5)), expected, atol=1e-5, rtol=0)
    energy = magnitudes(MATRIX).square().sum() / 9  # Parseval
    torch.testing.assert_close(energy, MATRIX.square().sum())


def test_the_published_ratio_takes_the_upper_triangle_alone() -> None:
    """Mean diag² is 4; two entries of 1 above the diagonal, over 9 entries."""
    assert published_signal_to_noise(MATRIX) == pytest.approx(10 * math.log10(4 / (2 / 9)))
    assert published_signal_to_noise(torch.eye(3)) is None
    found = spectrum(torch.eye(200), 1e-3)
    assert found.ratio is None
    assert found.published_ratio == pytest.approx(10 * math.log10(1 / (199 / 400 * 1e-6)), abs=0.1)
