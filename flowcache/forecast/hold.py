"""The last computed output, once more: what FlowCache and TeaCache do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.forecast.base import Forecast, Point


@dataclass(kw_only=True)
class Hold(Forecast):
    depth: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None:
            raise ValueError(f"limit={self.limit:g} limits how far a forecast goes, and hold goes nowhere; choose null")

    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        return points[0].output
