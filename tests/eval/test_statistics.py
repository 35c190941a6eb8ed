"""Intervals against formulas by hand, and bootstrap ones against what they must do."""

import math

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    MIN_RESAMPLED,
    NUM_RESAMPLES,
    SEED,
    mean_and_interval,
    median_and_interval,
    paired_difference,
    share_and_interval,
)


def test_a_means_interval_is_students():
    mean, half_width = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)  # t at 2 degrees of freedom, deviation 1
    assert math.isnan(mean_and_interval([1.0])[1])


def test_a_shares_interval_is_wilsons():
    # By hand: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964.
    assert share_and_interval([True] * 8 + [False] * 2) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    assert share_and_interval([True] * 10) == pytest.approx((1.0, 0.72247, 1.0), abs=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        share_and_interval([])


def test_a_medians_interval_holds_it_and_is_the_same_again():
    values = np.random.default_rng(0).normal(10, 1, 40)
    median, low, high = median_and_interval(values)
    assert median == np.median(values)
    assert min(values) < low < median < high < max(values)
    assert 0.3 < high - low < 1.6  # about 2 x 1.96 x 1.25 / sqrt(40) = 0.78 for normal values
    assert median_and_interval(values) == (median, low, high)


def test_pairs_cancel_what_prompts_have_in_common():
    rng = np.random.default_rng(1)
    prompts, gain = rng.normal(0, 100, 30), rng.normal(1, 0.1, 30)
    difference, low, high = paired_difference(prompts + gain, prompts)
    assert difference == pytest.approx(gain.mean())
    assert 0.9 < low < difference < high < 1.1
    assert paired_difference([True, False] * 3, [True, False] * 3) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="as many"):
        paired_difference([1.0], [])


def test_a_table_made_again_has_the_same_intervals():
    """Of values of which no two resamples have the same mean, so that other resamples would show."""
    rng = np.random.default_rng(2)
    values, others = rng.normal(size=(2, 24))
    first, again = (paired_difference(values, others) for _ in range(2))
    assert first == again
    assert first != paired_difference(values[::-1], others)  # other numbers are told apart


def test_few_values_have_no_bootstrap_interval():
    few = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(few) == MIN_RESAMPLED - 1
    for numbers in (few, few[:2], few[:1]):
        for value, low, high in (median_and_interval(numbers), paired_difference(numbers, [0.0] * len(numbers))):
            assert math.isfinite(value)
            assert math.isnan(low)
            assert math.isnan(high)
    assert not any(map(math.isnan, median_and_interval([*few, 32.0])))


@pytest.mark.parametrize(("num_values", "told"), [(2, 0.50), (3, 0.75), (5, 0.84), (6, 0.85), (8, 0.89), (16, 0.92)])
def test_bootstrap_intervals_cover_as_little_as_the_module_says(num_values, told):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(2000, num_values))
    means = samples[:, rng.integers(0, num_values, (500, num_values))].mean(axis=2)  # all resampled alike
    low, high = np.percentile(means, (2.5, 97.5), axis=1)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(told, abs=0.03)


@pytest.mark.parametrize("number", [6, 8, 64])
def test_intervals_are_those_of_scipy(number):
    values = np.random.default_rng(number).normal(10, 3, number)
    assert mean_and_interval(values)[1] == pytest.approx(stats.t.ppf(0.975, number - 1) * stats.sem(values), rel=1e-12)
    for right in (0, number // 3, number):
        share, *ends = share_and_interval([True] * right + [False] * (number - right))
        expected = stats.binomtest(right, number).proportion_ci(0.95, "wilson")
        assert share == right / number
        assert ends == pytest.approx(list(expected), rel=1e-12)
    for found, statistic in (
        (median_and_interval(values), np.median),
        (paired_difference(values, [0.0] * number), np.mean),
    ):
        expected = stats.bootstrap((values,), statistic, n_resamples=NUM_RESAMPLES, method="percentile", rng=SEED)
        assert found == pytest.approx((statistic(values), *expected.confidence_interval), rel=1e-12)
