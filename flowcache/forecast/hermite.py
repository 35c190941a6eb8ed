"""Differences times Hermite polynomials: HiCache (arXiv 2508.16984), sum_j F_j s^j H_j(s h) / j!, written from it.

H_j are the physicists' (1, 2x, 4x^2 - 2, ...). At order 1 the slope is 2 s^2 of Taylor's, half of it at s = 0.5; from
order 2 on the forecast at h = 0 is not the last output either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowcache.forecast.differences import ByDifferences
from flowcache.options import check_choice, is_finite


@dataclass(kw_only=True)
class Hermite(ByDifferences):
    """``h`` counts from the last computed output. With published differences it counts steps, as HiCache does; over
    times it is in units of the latest gap, between the last two computed outputs, and F_j is per such unit too: so
    ``scale`` means the same on a grid from 0 to 1 as on one from 999 to 0, and however many steps were skipped.

    Attributes:
        scale: s, above 0; at order 1, 1 / sqrt(2) is Taylor's.
        basis: "hermite", or "taylor_scaled": h^j s^(2j) in place of s^j H_j(s h), which is HiCache's own comparison.
    """

    scale: float = 0.5
    basis: str = "hermite"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_finite(self.scale) and self.scale > 0):
            raise ValueError(f"scale={self.scale!r} must be a finite number above 0")
        check_choice("basis", self.basis, ("hermite", "taylor_scaled"))

    def coefficients(self, place: float, places: Sequence[float]) -> list[float]:
        unit = 1.0 if self.published or len(places) == 1 else places[0] - places[1]
        x = self.scale * (place - places[0]) / unit
        terms = [1.0]
        for j in range(len(places) - 1):
            if self.basis == "taylor_scaled":
                terms.append(x * terms[j])
            else:
                terms.append(2 * x * terms[j] - (2 * j * terms[j - 1] if j else 0.0))
        return [(self.scale * unit) ** j * term / math.factorial(j) for j, term in enumerate(terms)]
