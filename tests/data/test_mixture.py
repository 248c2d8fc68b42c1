"""The order of samples: permutations without a table, and mixtures whose weights hold over every stretch."""

import itertools

import numpy as np
import pytest

from trainer.data.mixture import Schedule, assign, whole_parts
from trainer.data.random import permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 10, 17, 100, 1000, 12_345])
def test_a_permutation_has_each_number_once(size: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_a_permutation_is_the_same_asked_in_parts_and_another_for_another_key() -> None:
    whole = permute(np.arange(1000), 1000, 5)
    parts = [permute(np.array(part), 1000, 5) for part in ([3, 999], [0], range(500, 520))]
    assert np.array_equal(np.concatenate(parts), whole[[3, 999, 0, *range(500, 520)]])
    assert (permute(np.arange(1000), 1000, 6) == whole).sum() < 10


def test_a_permutation_of_billions_needs_no_table() -> None:
    places = np.arange(10**11, 10**11 + 50_000)
    numbers = permute(places, 2 * 10**11, 1)
    assert len(np.unique(numbers)) == 50_000
    assert numbers.min() >= 0
    assert numbers.max() < 2 * 10**11
    counts = np.histogram(numbers, 100, (0, 2 * 10**11))[0]  # 500 expected in each
    assert ((counts - 500) ** 2 / 500).sum() < 150  # chi-squared with 99 degrees of freedom: p < 0.001


def test_permutations_of_a_few_are_equally_likely() -> None:
    """Of two neighbours: all pairs of numbers, over many keys."""
    size, keys = 6, 2000
    pairs = [tuple(permute(np.array([0, 1]), size, key).tolist()) for key in range(keys)]
    possible = list(itertools.permutations(range(size), 2))
    expected = keys / len(possible)
    counts = np.array([pairs.count(pair) for pair in possible])
    assert counts.sum() == keys
    assert ((counts - expected) ** 2 / expected).sum() < len(possible) + 3 * (2 * len(possible)) ** 0.5


def test_weights_become_whole_numbers() -> None:
    assert whole_parts([0.8, 0.2]) == [4, 1]
    assert whole_parts([3, 3]) == [1, 1]
    assert whole_parts([7]) == [1]
    assert whole_parts([1, 1, 1]) == [3334, 3333, 3333]
    with pytest.raises(ValueError, match="less than 1/10000"):
        whole_parts([1, 1e-6])


SHARES = [[4, 1], [1, 1, 1], [7, 5, 3], [1, 2, 3, 5, 8, 13], [97, 2, 1], [30, 29, 28, 27, 1, 1, 1]]


@pytest.mark.parametrize("shares", SHARES)
def test_every_stretch_has_the_weights(shares: list[int]) -> None:
    """Each source has its share of every stretch of draws, up to less than two draws; of two sources, less than one."""
    period = sum(shares)
    sequence = np.tile(assign(shares), 3)
    counts = np.concatenate(
        [np.zeros((1, len(shares))), (sequence[:, None] == np.arange(len(shares))).cumsum(0)]
    )
    ahead = counts - np.arange(3 * period + 1)[:, None] * np.array(shares) / period
    assert np.abs(ahead).max() < 1
    window = max(
        np.ptp(ahead[:, source]) for source in range(len(shares))
    )  # of all stretches, the farthest off
    assert window < (1 if len(shares) == 2 else 2)
    assert np.array_equal(counts[period], shares)


def test_draws_are_the_same_wherever_they_begin() -> None:
    schedule = Schedule([0.5, 0.3, 0.2])
    sources, counts = schedule.draws(np.arange(1000))
    for source in range(3):  # each source's draws are numbered without gaps
        assert np.array_equal(counts[sources == source], np.arange((sources == source).sum()))
    for start in (1, 7, 999):
        later = schedule.draws(np.arange(start, 1000))
        assert np.array_equal(later[0], sources[start:])
        assert np.array_equal(later[1], counts[start:])
