"""Against scipy, and by counting how often a true null hypothesis is rejected."""

import math
import random

import pytest
from scipy import special, stats

from trainer.report.statistics import (
    Difference,
    compare,
    holm,
    holm_confidences,
    incomplete_beta,
    mean_interval,
    more_seeds,
    paired_test,
    t_quantile,
    t_two_sided,
    welch_test,
)


@pytest.mark.parametrize("a", [0.5, 1, 3.7, 50, 2000])
@pytest.mark.parametrize("b", [0.5, 2, 30])
@pytest.mark.parametrize("x", [0.0, 1e-9, 0.01, 0.3, 0.5, 0.9, 0.9999, 1.0])
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("df", [1, 1.3, 2, 4, 9.5, 30, 1000])
def test_student_t(df: float) -> None:
    for t in (-40.0, -2.0, 0.0, 0.1, 3.0, 200.0):
        assert t_two_sided(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-9)
    for confidence in (0.5, 0.95, 0.9975):
        assert t_quantile(df, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-9)


def samples(n: int, m: int) -> tuple[list[float], list[float]]:
    draw = random.Random(n * 100 + m)
    return [draw.gauss(0.9, 0.02) for _ in range(n)], [draw.gauss(0.87, 0.05) for _ in range(m)]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_mean_interval(n: int) -> None:
    values, _ = samples(n, 2)
    interval = mean_interval(values)
    assert interval.ends == pytest.approx(stats.t.interval(0.95, n - 1, interval.mean, stats.sem(values)))


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]).ends is None
    assert mean_interval([0.5, float("inf")]).ends is None


@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired(n: int) -> None:
    a, b = samples(n, n)
    ours, theirs = paired_test(a, b), stats.ttest_rel(a, b)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval(0.95).ends == pytest.approx(theirs.confidence_interval(0.95))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (8, 2)])
def test_welch(n: int, m: int) -> None:
    a, b = samples(n, m)
    ours, theirs = welch_test(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval(0.95).ends == pytest.approx(theirs.confidence_interval(0.95))


def test_pairs_where_seeds_match() -> None:
    a, b = samples(4, 4)
    first = dict(enumerate(a))
    assert compare(first, dict(enumerate(b))).kind == "paired"
    assert compare(first, dict(enumerate(b, 1))).n == (3, 3)
    assert compare(first, dict(enumerate(b, 2))).kind == "Welch"
    assert compare(first, dict(enumerate(b, 9))).n == (4, 4)
    assert compare({0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.1}).kind == "paired"


@pytest.mark.parametrize("test", [paired_test, welch_test])
def test_values_without_spread_prove_nothing(test) -> None:
    assert test([0.1 + 0.2] * 3, [0.3] * 3).p == 1
    assert test([0.9] * 3, [0.8] * 3).p is None
    assert test([0.9], [0.8]).p is None


def test_holm() -> None:
    # by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2, and 0.04, which must not be smaller than the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("shift", [0, 100])
def test_rejects_a_true_null_hypothesis_as_often_as_it_says(shift: int) -> None:
    """With pairs and, by shifted seeds, without."""
    draw, tries = random.Random(0), 2000
    rejected = 0
    for _ in range(tries):
        a, b = ([draw.gauss(0, 1) for _ in range(4)] for _ in range(2))
        rejected += (compare(dict(enumerate(a)), dict(enumerate(b, shift))).p or 0) < 0.05
    assert 0.03 < rejected / tries < 0.065


@pytest.mark.parametrize("level", [0.05, 0.3])
def test_intervals_say_what_holm_says(level: float) -> None:
    draw = random.Random(0)
    for _ in range(300):
        tests = [paired_test(*samples_of(draw, draw.choice([0, 1, 3]))) for _ in range(draw.randint(1, 6))]
        ps = [test.p for test in tests if test.p is not None]
        for test, p, confidence in zip(tests, holm(ps), holm_confidences(ps, level), strict=True):
            low, high = test.interval(confidence).ends or (0, 0)
            assert (low > 0 or high < 0) == (p < level)


def samples_of(draw: random.Random, gap: float) -> tuple[list[float], list[float]]:
    return [draw.gauss(gap, 1) for _ in range(4)], [draw.gauss(0, 1) for _ in range(4)]


@pytest.mark.parametrize("confidence", [0.95, 0.995])
@pytest.mark.parametrize("ratio", [0.3, 0.8, 2.0])  # difference in units of its standard deviation
def test_so_many_seeds_show_it_four_times_in_five(ratio: float, confidence: float) -> None:
    found = Difference("paired", (3, 3), ratio, 1 / math.sqrt(3), 2, 0.5)
    more = more_seeds(found, confidence)
    assert more is not None
    n = 3 + more
    critical = stats.t.ppf((1 + confidence) / 2, n - 1)
    assert 0.75 < stats.nct.sf(critical, n - 1, ratio * math.sqrt(n)) < 0.95


def test_seeds_that_nobody_has() -> None:
    assert more_seeds(Difference("Welch", (3, 5), 0.01, 1.0, 4.0, 0.9), 0.95) is None
    assert more_seeds(Difference("Welch", (1, 5), 0.01, None, 0, None), 0.95) is None
    few, many = (more_seeds(Difference("Welch", (3, 3), gap, 1.0, 4.0, 0.1), 0.95) for gap in (2.5, 1.5))
    assert few is not None
    assert many is not None
    assert 0 < few < many
