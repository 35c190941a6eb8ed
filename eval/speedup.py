"""How much faster a method is than a baseline that was timed in turn with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.statistics import median_and_interval


@dataclass(frozen=True)
class Speedup:
    """Of a method over a baseline that was timed in turn with it.

    Attributes:
        median, low, high: of the pairs' ratios of seconds, and its 95 % bootstrap interval (nan for few pairs, see
            ``eval.statistics``).
        pairs: how many there are.
        efficiency: median of speed-up times compute left (1 where every FLOP saved became time saved), and the ends of
            its interval.
    """

    median: float
    low: float
    high: float
    pairs: int
    efficiency: tuple[float, float, float]


def speedup(latency_s: Sequence[float], baseline_latency_s: Sequence[float], compute_left: Sequence[float]) -> Speedup:
    """Pairs of seconds, and each pair's share of the baseline's FLOPs that the method executed.

    Raises:
        ValueError: they are not as many, or none.
    """
    if not len(latency_s) == len(baseline_latency_s) == len(compute_left) > 0:
        raise ValueError(
            f"a speed-up needs pairs, got {len(latency_s)} latencies, {len(baseline_latency_s)} of the baseline and "
            f"{len(compute_left)} shares of compute"
        )
    ratios = [before / after for before, after in zip(baseline_latency_s, latency_s, strict=True)]
    efficiency = [ratio * left for ratio, left in zip(ratios, compute_left, strict=True)]
    return Speedup(*median_and_interval(ratios), len(ratios), median_and_interval(efficiency))
