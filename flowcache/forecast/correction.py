"""Skipped steps taken once more: when a chunk computes again, its outputs in between are interpolated, not forecast.

The corrector of predictor-corrector solvers (UniPC, arXiv 2302.04867; FoCa, arXiv 2508.16211), over a whole gap of
skipped steps. It costs no forward: the sampler's own steps are taken again, on one chunk's latent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowcache.forecast.base import Point


def interpolation_weights(t: float, times: Sequence[float]) -> list[float]:
    """Of the outputs at ``times``, in the polynomial through them at time t (Lagrange's form). Times are distinct."""
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if j != i:
                weight *= (t - other) / (own - other)
        weights.append(weight)
    return weights


def interpolate(t: float, points: Sequence[Point]) -> Tensor:
    """The polynomial through the points' outputs at time t, in their shape and type. Points are newest first; of two of
    one time (a rounded grid) the newer counts."""
    distinct = list({point.t: point for point in reversed(points)}.values())[::-1]
    weights = interpolation_weights(t, [point.t for point in distinct])
    output = distinct[0].output * weights[0]
    for point, weight in zip(distinct[1:], weights[1:], strict=True):
        output.add_(point.output, alpha=weight)
    return output
