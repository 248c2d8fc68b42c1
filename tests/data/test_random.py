import numpy as np
import torch

from trainer.data.random import mix, uniform

# The first numbers of SplitMix64 with seed 1234567, as in Rosetta Code's table of test vectors.
SPLITMIX64 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_hash_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + n * golden) % 2**64 for n in range(5)]
    assert [mix(state) for state in states] == SPLITMIX64


def test_a_samples_numbers_do_not_depend_on_its_neighbours():
    whole = uniform(3, torch.arange(100), 4)
    part = uniform(3, torch.tensor([17, 5]), 4)
    assert (part == whole[:, [17, 5]]).all()
    assert (uniform(4, torch.arange(100), 4) != whole).all()


def test_numbers_are_uniform_and_independent():
    draws = uniform(mix(0, 1, 2), torch.arange(20_000), 5)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(stream, bins=20, range=(0, 1))[0] for stream in draws])
    chi2 = ((counts - 1000) ** 2 / 1000).sum(1)
    assert (chi2 < 45).all()  # 19 degrees of freedom: p = 0.0007
    assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.03
