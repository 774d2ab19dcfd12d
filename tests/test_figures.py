"""The arithmetic of repeated measurements, to the digit."""

from __future__ import annotations

import math

import pytest

from qwqcli import figures
from qwqcli.figures import Ratio


def test_summary_is_that_of_llama_bench() -> None:
    """Mean and sample standard deviation (n - 1), median, extremes."""
    found = figures.summary([37.5, 38.0, 37.0, 37.5])
    assert (found.mean, found.median, found.low, found.high) == (37.5, 37.5, 37.0, 38.0)
    assert found.sd == pytest.approx(math.sqrt(0.5 / 3), rel=1e-12)


def test_one_sample_has_no_spread() -> None:
    """llama-bench gives 0 as the standard deviation of one repetition, and so do we."""
    assert figures.summary([12.0]).sd == 0.0


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        ([10.0, 10.1, 9.9, 10.0, 30.0], (4,)),  # one that was disturbed
        ([10.0, 10.1, 9.9, 10.05, 9.95], ()),  # an ordinary spread
        ([10.0, 10.0, 10.0, 10.1], ()),  # equal but for 1 %: nothing to name
        ([10.0, 10.0, 10.0, 11.0], (3,)),  # where MAD is 0, the share decides
        ([1.0, 9.0], ()),  # of two nobody can say which is wrong
    ],
)
def test_outliers_are_named(samples: list[float], named: tuple[int, ...]) -> None:
    """A value is named if it is far from the others, and not only by their tiny spread."""
    assert figures.summary(samples).outliers == named


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)]
)
def test_t_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    """Two-sided 95 % points of Student's distribution, as statistical tables print them."""
    assert round(figures.t_quantile(freedom), 3) == t


def test_paired_ratio_by_hand() -> None:
    """Ratios e^0.1, e^0.2, e^0.3: mean logarithm 0.2, error 0.1 / sqrt(3), t(2) = 4.303."""
    found = figures.paired_ratio([(math.exp(x), 1.0) for x in (0.1, 0.2, 0.3)])
    reach = 4.302652729 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(0.2))
    assert found.low == pytest.approx(math.exp(0.2 - reach), rel=1e-6)
    assert found.high == pytest.approx(math.exp(0.2 + reach), rel=1e-6)
    assert found.within_noise


def test_ratio_of_two_runs_by_hand() -> None:
    """Equal spreads and sizes: Welch's degrees of freedom are 2 (n - 1), the errors add up."""
    a = [math.exp(1 + x) for x in (-0.01, 0.0, 0.01)]
    b = [math.exp(x) for x in (-0.01, 0.0, 0.01)]
    reach = 2.776445105 * math.sqrt(2 * 0.0001 / 3)
    found = figures.ratio(a, b)
    assert found.value == pytest.approx(math.e)
    assert found.low == pytest.approx(math.exp(1 - reach), rel=1e-6)
    assert not found.within_noise
    assert found.gain == found.low


def test_without_repetitions_nothing_is_proved() -> None:
    """A ratio of single measurements has no interval, so no gain."""
    for found in (figures.ratio([2.0], [1.0]), figures.paired_ratio([(2.0, 1.0)])):
        assert (found.value, found.low, found.gain) == (2.0, None, 1.0)


def test_equal_samples_prove_their_ratio() -> None:
    """Where nothing varies the interval has no width, and nothing divides by zero."""
    assert figures.ratio([2.0, 2.0], [1.0, 1.0]) == Ratio(2.0, 2.0, 2.0)


def test_gain_of_a_loss_is_its_better_end() -> None:
    """What is proved is the end of the interval that is nearer to 1."""
    assert Ratio(0.5, 0.4, 0.6).gain == 0.6
    assert Ratio(1.1, 0.9, 1.3).gain == 1.0
