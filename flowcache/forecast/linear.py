"""First order in the chunk's own time: the line through the last two computed outputs, or less steep.

The first-order member of TaylorSeer (arXiv 2503.06923), over times instead of step numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.options import check_share


@dataclass(kw_only=True)
class Linear(Forecast):
    """Attributes: ``damping`` scales the slope, 0 (hold) to 1 (the whole line); with one computed output it holds."""

    depth: ClassVar[int] = 2
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(damping=self.damping)

    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        newest, before = points[0], points[-1]
        if newest.t == before.t or self.damping == 0:  # one point, or two steps of one time on a rounded grid
            return newest.output
        ahead = self.damping * (t - newest.t) / (newest.t - before.t)  # in steps of what lies between the two
        return torch.add(newest.output, newest.output - before.output, alpha=ahead)
