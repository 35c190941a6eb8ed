"""The polynomial through the last computed outputs, of order 1 to 3: TaylorSeer (arXiv 2503.06923), over times.

With published differences it is TaylorSeer's and diffusers' own: sum_j F_j h^j / j!, h steps after the last computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowcache.forecast.differences import ByDifferences
from flowcache.options import check_share


@dataclass(kw_only=True)
class Taylor(ByDifferences):
    """Over times, Newton's form: exact on a polynomial of that order at any spacing; order 1 undamped is ``Linear``.

    Attributes:
        damping: its j-th power scales the term of order j, 0 (hold) to 1 (the whole polynomial).
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(damping=self.damping)

    def coefficients(self, place: float, places: Sequence[float]) -> list[float]:
        coefficients = [1.0]
        for j, known in enumerate(places[:-1], start=1):
            ahead = place - (places[0] if self.published else known)  # a power of h, or Newton's product
            coefficients.append(coefficients[-1] * self.damping * ahead / j)
        return coefficients
