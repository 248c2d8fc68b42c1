"""Means with their intervals, and tests of a difference, from Student's t distribution."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Literal

CONFIDENCE = 0.95
"""Coverage of all intervals."""


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval, which takes at least two values."""

    mean: float
    half: float | None

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
    interval: Interval
    """The first sample's mean minus the second's."""
    p: float | None
    """Probability of a difference at least as large between equal means; None where nothing can be tested: a sample
    of one, or values without variance."""


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its interval, for independent values from a roughly normal distribution."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(sum(values) / len(values), None)
    error = stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values), t_quantile(len(values) - 1) * error)


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
    return Difference("paired", (n, n), *_judge(mean, error, n - 1, scale=_largest(first, second)))


def welch_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Welch's t test: independent samples of different variances, degrees of freedom by Satterthwaite."""
    n = len(first), len(second)
    mean = fmean(first) - fmean(second)
    if min(n) < 2:
        return Difference("Welch", n, Interval(mean, None), None)
    a, b = variance(first) / n[0], variance(second) / n[1]
    df = (a + b) ** 2 / (a**2 / (n[0] - 1) + b**2 / (n[1] - 1)) if a + b else 1.0
    return Difference("Welch", n, *_judge(mean, math.sqrt(a + b), df, scale=_largest(first, second)))


def _judge(mean: float, error: float | None, df: float, scale: float) -> tuple[Interval, float | None]:
    """A difference's interval and p value from its standard error; rounding errors do not count as variance."""
    if error is None:
        return Interval(mean, None), None
    interval = Interval(mean, t_quantile(df) * error)
    if error <= 1e-12 * scale:
        return interval, 1.0 if abs(mean) <= 1e-12 * scale else None
    return interval, t_two_sided(mean / error, df)


def _largest(*samples: Sequence[float]) -> float:
    return max(abs(value) for sample in samples for value in sample)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values corrected for their number: the chance of any false claim stays below the level (Holm, 1979)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected


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
