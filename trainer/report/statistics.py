"""Means with their intervals, and tests of a difference, from Student's t distribution."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Literal

CONFIDENCE = 0.95
"""Coverage of the intervals of means."""
POWER = 0.8
"""Chance with which the seeds that `more_seeds` counts show a difference."""
MOST_SEEDS = 1000
"""Of each group; what needs more than these is not counted."""


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its interval, which takes at least two values."""

    mean: float
    half: float | None
    deviation: float | None = None
    """Standard deviation of the values that it is the mean of."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lower and upper end; None for a mean of one value."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


@dataclass(frozen=True)
class Difference:
    """The difference of two samples' means, with its two-sided t test."""

    kind: Literal["paired", "Welch"]
    n: tuple[int, int]
    """Values of each sample that were used; a pair counts in both."""
    mean: float
    """The first sample's mean minus the second's."""
    error: float | None
    """Its standard error; None of a sample of one."""
    df: float
    """Degrees of freedom of the test."""
    p: float | None
    """Probability of a difference at least as large between equal means; None where nothing can be tested: a sample
    of one, or values without variance."""

    def interval(self, confidence: float) -> Interval:
        """The interval that leaves out zero exactly if p is less than 1 - confidence."""
        half = None if self.error is None else t_quantile(self.df, confidence) * self.error
        return Interval(self.mean, half)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its interval, for independent values from a roughly normal distribution."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(sum(values) / len(values), None)
    deviation = stdev(values)
    half = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(fmean(values), half, deviation)


MIN_PAIRS = 3
"""Fewest shared keys for a paired test; with fewer of them the test is unpaired and uses all values."""


def compare(first: Mapping[object, float], second: Mapping[object, float]) -> Difference:
    """Tests the difference of two samples' means, paired where the samples share keys.

    Args:
        first, second: finite values by what makes a pair, such as the seed; at least one each.
    """
    shared = [key for key in first if key in second]
    if len(shared) >= MIN_PAIRS or (shared and len(shared) == len(first) == len(second)):
        return paired_test([first[key] for key in shared], [second[key] for key in shared])
    return welch_test(list(first.values()), list(second.values()))


def paired_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Student's t test of the pairs' differences."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n, mean = len(differences), fmean(differences)
    error = stdev(differences) / math.sqrt(n) if n > 1 else None
    return Difference("paired", (n, n), mean, error, n - 1, _p(mean, error, n - 1, _largest(first, second)))


def welch_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Welch's t test: independent samples of different variances, degrees of freedom by Satterthwaite."""
    n = len(first), len(second)
    mean = fmean(first) - fmean(second)
    if min(n) < 2:
        return Difference("Welch", n, mean, None, 0, None)
    a, b = variance(first) / n[0], variance(second) / n[1]
    df = (a + b) ** 2 / (a**2 / (n[0] - 1) + b**2 / (n[1] - 1)) if a + b else 1.0
    error = math.sqrt(a + b)
    return Difference("Welch", n, mean, error, df, _p(mean, error, df, _largest(first, second)))


def _p(mean: float, error: float | None, df: float, scale: float) -> float | None:
    """A difference's p value from its standard error; rounding errors do not count as variance."""
    if error is None:
        return None
    if error <= 1e-12 * scale:
        return 1.0 if abs(mean) <= 1e-12 * scale else None
    return t_two_sided(mean / error, df)


def _largest(*samples: Sequence[float]) -> float:
    return max(abs(value) for sample in samples for value in sample)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values corrected for their number: the chance of any false claim stays below the level (Holm, 1979)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


def holm_confidences(ps: Sequence[float], level: float) -> list[float]:
    """The confidence of the interval on which Holm's procedure rests its claim about each difference.

    It tests the k-th smallest p value at level / (n - k + 1), and all others as the first one that it does not claim. A
    difference is claimed, by `holm` at that level, exactly if its interval leaves out zero.
    """
    confidences, tests, claiming = [0.0] * len(ps), len(ps), True
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if claiming:
            tests = len(ps) - rank
            claiming = tests * ps[index] < level
        confidences[index] = 1 - level / tests
    return confidences


def more_seeds(found: Difference, confidence: float) -> int | None:
    """How many more values of each sample would show a difference, if it and the spread are what they seem.

    Shown: the interval of that confidence leaves out zero, with a chance of about `POWER`.

    Returns:
        None if that takes more than `MOST_SEEDS` of each, or if nothing is known about the spread.
    """
    if not found.error or not found.mean:
        return None
    now = min(found.n)

    def shown(n: int) -> bool:
        df = n - 1 if found.kind == "paired" else found.df * n / now
        error = found.error * math.sqrt(now / n) if found.error else 0.0
        margin = t_quantile(df, confidence) + t_quantile(df, 2 * POWER - 1)
        return abs(found.mean) >= margin * error

    numbers = range(now + 1, MOST_SEEDS + 1)
    first = bisect_left(numbers, True, key=shown)
    return numbers[first] - now if first < len(numbers) else None


def t_two_sided(t: float, df: float) -> float:
    """Probability that Student's t with ``df`` > 0 degrees of freedom is at least as far from 0 as ``t``."""
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """The t > 0 for which Student's t lies between -t and t with this probability, by bisection."""
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, df) > 1 - confidence else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a, b > 0, 0 <= x <= 1.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated with Lentz's method.
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, that of the complement is fast
        return 1 - incomplete_beta(b, a, 1 - x)
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for i in range(10_000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d or tiny)
        c = 1 + term / c or tiny
        fraction *= c * d
        if i and abs(1 - c * d) < 1e-15:
            break
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * (fraction - 1)
