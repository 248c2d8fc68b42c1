"""Which source each draw of a mixture comes from: by weights, exact over any stretch of draws, at random access.

The sequence of sources is periodic. Within a period each draw goes to a source that is due: one whose next draw, for
its count to stay within one of its share, must come soonest (Tijdeman, The chairman assignment problem, 1980).
"""

from collections.abc import Sequence
from functools import reduce
from math import gcd

import numpy as np

PARTS = 10_000
"""In which weights are rounded."""


class Schedule:
    """The source of each draw, numbered from 0 on without end.

    Of the first n draws of any stretch, each source has its share of n up to less than two.

    Args:
        weights: of the sources, positive; only their proportions count, in ten-thousandths of their sum.

    Raises:
        ValueError: a weight is so small that it would be rounded to nothing.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.shares = whole_parts(weights)
        """Draws of each source in a period."""
        self.period = sum(self.shares)
        self._source = assign(self.shares)  # [period]
        drawn = self._source[:, None] == np.arange(len(self.shares))  # [period, sources]
        self._before = np.cumsum(drawn, 0)[np.arange(self.period), self._source] - 1  # [period]

    def draws(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each draw, and how many draws that source had before it.

        Args:
            places: numbers of draws, int64 [B].

        Returns:
            Both int64 [B].
        """
        periods, within = np.divmod(places, self.period)
        source = self._source[within]
        return source, periods * np.array(self.shares)[source] + self._before[within]


def whole_parts(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers in their lowest terms, by largest remainders.

    Raises:
        ValueError: one would be zero.
    """
    exact = np.array(weights, dtype=np.float64) / sum(weights) * PARTS
    parts = np.floor(exact).astype(int)
    missing = PARTS - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:missing]] += 1
    if not parts.all():
        raise ValueError(f"a weight is less than 1/{PARTS} of their sum")
    divisor = reduce(gcd, parts.tolist())
    return [int(part) // divisor for part in parts]


def assign(shares: Sequence[int]) -> np.ndarray:
    """A sequence with so many draws of each source, in which each stays within one of its share of every prefix.

    Args:
        shares: whole numbers > 0.

    Returns:
        The source of each draw, int64 [sum of the shares].
    """
    wanted, period = np.array(shares), sum(shares)
    counts = np.zeros_like(wanted)
    sources = np.empty(period, dtype=np.int64)
    for draw in range(period):
        # of the sources that may have one more now, the one that must have it first
        eligible = counts * period < wanted * (draw + 1)
        deadline = np.where(eligible, (counts + 1) * period / wanted, np.inf)
        sources[draw] = deadline.argmin()
        counts[sources[draw]] += 1
    return sources
