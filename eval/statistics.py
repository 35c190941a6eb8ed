"""Means, medians and shares with 95 % confidence intervals, over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

NUM_RESAMPLES = 9999
SEED = 0  # of the resamples, so that a table made again is the same


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t); nan for fewer than two values."""
    mean = float(np.mean(values)) if len(values) else float("nan")
    if len(values) < 2:
        return mean, float("nan")
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def median_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the ends of its 95 % bootstrap interval; nan for fewer than two values."""
    return _bootstrap(values, np.median)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Mean of values - others, prompt by prompt, and the ends of its 95 % bootstrap interval.

    Raises:
        ValueError: they are not as many.
    """
    if len(values) != len(others):
        raise ValueError(f"pairs need as many values as others, got {len(values)} and {len(others)}")
    return _bootstrap(np.subtract(values, others, dtype=float), np.mean)


def share_and_interval(outcomes: Sequence[bool]) -> tuple[float, float, float]:
    """Share that is true, in [0, 1], and the ends of its 95 % Wilson score interval.

    Raises:
        ValueError: there are no outcomes.
    """
    if not len(outcomes):
        raise ValueError("a share needs at least one outcome, got none")
    test = stats.binomtest(sum(bool(outcome) for outcome in outcomes), len(outcomes))
    interval = test.proportion_ci(confidence_level=0.95, method="wilson")
    return test.statistic, float(interval.low), float(interval.high)


def _bootstrap(values: Sequence[float], statistic: Callable) -> tuple[float, float, float]:
    """By resampling prompts, percentiles of the statistic."""
    centre = float(statistic(values)) if len(values) else float("nan")
    if len(values) < 2:
        return centre, float("nan"), float("nan")
    interval = stats.bootstrap(
        (np.asarray(values, dtype=float),), statistic, n_resamples=NUM_RESAMPLES, method="percentile", rng=SEED
    ).confidence_interval
    return centre, float(interval.low), float(interval.high)
