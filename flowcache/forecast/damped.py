"""First order in the chunk's own time, with a slope that fades: the further ahead, the less it adds.

The line of ``Linear`` in continuous time, damped as a trend is in exponential smoothing (Gardner and McKenzie 1985).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.options import is_finite


@dataclass(kw_only=True)
class Damped(Forecast):
    """Goes (1 - exp(-fade ahead)) / fade of the last change further, where ``ahead`` is in gaps between the last two
    computed outputs, so that it never goes beyond 1 / fade of that change; with one computed output it holds.

    Attributes:
        fade: how fast, above 0. Towards 0 it is ``Linear``, towards infinity ``Hold``.
    """

    depth: ClassVar[int] = 2
    fade: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_finite(self.fade) and self.fade > 0):
            raise ValueError(f"fade={self.fade!r} must be a finite number above 0 (towards 0 it is linear)")

    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        newest, before = points[0], points[-1]
        if newest.t == before.t:  # one point, or two steps of one time on a rounded grid
            return newest.output
        ahead = (t - newest.t) / (newest.t - before.t)
        faded = -math.expm1(-self.fade * ahead) / self.fade
        return torch.add(newest.output, newest.output - before.output, alpha=faded)
