"""Random numbers as a function of a key and a sample's number: the same whatever rank or process draws them.

The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014),
which needs no state: the n-th number of a stream is a hash of its seed plus n times a constant.
"""

import math
from typing import TypeVar

import numpy as np
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
ROUNDS = 8
"""Of the Feistel network. Four make a permutation of many numbers look random (Luby and Rackoff, 1988); eight do for
six numbers, too."""

Bits = TypeVar("Bits", int, np.ndarray)


def mix(*numbers: int) -> int:
    """A seed in [0, 2**64) made of several numbers, such as a seed, an epoch and a batch."""
    seed = 0
    for number in numbers:
        seed = _hash((seed + GOLDEN + number) & MASK)
    return seed


def uniform(key: int, indices: Tensor, streams: int) -> np.ndarray:
    """Numbers in [0, 1) for each sample, each a function of the key, the sample's number and the stream only.

    Args:
        key: an integer in [0, 2**64).
        indices: int64 [B], on the CPU.
        streams: how many numbers each sample gets.

    Returns:
        float64 [streams, B].
    """
    seeds = _hash(indices.numpy().astype(np.uint64) + np.uint64(key))
    steps = (np.arange(1, streams + 1, dtype=np.uint64) * np.uint64(GOLDEN))[:, None]
    return (_hash(seeds + steps) >> 11) * 2.0**-53  # 53 bits: the precision of a double


def permute(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """What a pseudo-random permutation of ``range(size)`` has at these places, without a table of it.

    A Feistel network (each round adds a hash of one half to the other) permutes pairs of numbers below the root of
    the size, rounded up. Of what it gives, numbers that are too large go through it again until they are not
    (cycle walking: Black and Rogaway, Ciphers with arbitrary finite domains, 2002); they are few.

    Args:
        places: int64 [B], each in [0, size).
        size: less than 2**62.
        key: picks the permutation, in [0, 2**64).

    Returns:
        int64 [B].
    """
    root = math.isqrt(max(size - 1, 0)) + 1
    keys = [np.uint64(mix(key, number)) for number in range(ROUNDS)]

    def shuffle(numbers: np.ndarray) -> np.ndarray:
        left, right = np.divmod(numbers, np.uint64(root))
        for round_key in keys:
            left, right = right, (left + _hash(right ^ round_key)) % np.uint64(root)
        return left * np.uint64(root) + right

    numbers = shuffle(places.astype(np.uint64))
    while (outside := numbers >= size).any():
        numbers[outside] = shuffle(numbers[outside])
    return numbers.astype(np.int64)


def _hash(bits: Bits) -> Bits:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)
