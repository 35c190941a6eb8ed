"""Forecasts that sum up differences of the last computed outputs: what Taylor and Hermite share.

F_0 is the newest output, and F_j, made of j + 1 outputs, stands for the j-th derivative there. Two forms are known:

* "divided": j! times the divided differences over the chunk's own times. They are a polynomial's own derivatives up to
  its degree, whatever the spacing: each difference is divided by the mean gap between the outputs that it is made of.
* "published": TaylorSeer's (arXiv 2503.06923) over step numbers: F_(j+1) = (F_j - F_j before) / latest gap. Every order
  divides by the latest gap alone, so that gaps of different lengths leave an error. diffusers has the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.options import check_choice, is_count

MOST_ORDER = 3


@dataclass(kw_only=True)
class ByDifferences(Forecast):
    """Sums over j of a coefficient times F_j.

    Attributes:
        order: of the highest difference, 1 to 3. Fewer computed outputs than ``order + 1`` allow a lower order.
        differences: "divided" over times, or "published" over step numbers.
        first: of published differences: the first steps that always compute. TaylorSeer's code forms differences only
            at computed steps after ``first - 2``; 1 forms them always, as diffusers does.
    """

    order: int = 2
    differences: str = "divided"
    first: int = 1

    def __post_init__(self) -> None:
        if not (is_count(self.order) and self.order <= MOST_ORDER):  # before the rest, because depth is made of it
            raise ValueError(f"order={self.order!r} must be a whole number from 1 to {MOST_ORDER}")
        super().__post_init__()
        check_choice("differences", self.differences, ("divided", "published"))
        if not is_count(self.first):
            raise ValueError(f"first={self.first!r} must be a whole number of at least 1 (1 always forms differences)")
        if self.first > 1 and not self.published:
            raise ValueError(f"first={self.first} must be 1 with differences='divided', which count no steps")

    @property
    def depth(self) -> int:
        return self.order + 1

    @property
    def published(self) -> bool:
        return self.differences == "published"

    @abstractmethod
    def coefficients(self, place: float, places: Sequence[float]) -> list[float]:
        """Of F_0, which must be 1, up to the last F_j there is, for a forecast at a place.

        Places are times, or published step numbers: of the computed outputs, newest first, no two the same.
        """

    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        outputs: dict[float, Tensor] = {}
        for point in points:
            outputs.setdefault(point.step if self.published else point.t, point.output)  # of one time the newer counts
            if self.published and point.step <= self.first - 2:
                break  # no difference was formed at this step, so that nothing older is in any
        places = list(outputs)
        coefficients = self.coefficients(step if self.published else t, places)
        weights = difference_weights(places, self.published)
        newest, *older = outputs.values()
        forecast = newest
        for i, output in enumerate(older, start=1):
            weight = sum(coefficient * row[i] for coefficient, row in zip(coefficients, weights, strict=True))
            if weight:
                # F_j of j > 0 has weights that cancel, so that changes from the newest are all it takes. They are
                # small: in bfloat16 far less is lost than in outputs times large weights.
                forecast = torch.add(forecast, output - newest, alpha=weight)
        return forecast


def difference_weights(places: Sequence[float], published: bool) -> list[list[float]]:
    """Row j: the outputs' weights in F_j at the newest place. Places are newest first, no two the same."""
    count = len(places)
    rows = [[float(i == k) for k in range(count)] for i in range(count)]
    weights = rows[:1]
    for order in range(1, count):
        gaps = [
            places[i] - places[i + 1] if published else (places[i] - places[i + order]) / order
            for i in range(count - order)
        ]
        rows = [
            [(new - old) / gap for new, old in zip(rows[i], rows[i + 1], strict=True)] for i, gap in enumerate(gaps)
        ]
        weights.append(rows[0])
    return weights
