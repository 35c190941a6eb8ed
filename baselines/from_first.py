"""The line through the last two outputs, as far along as the video's first chunk went: ARCache's scaled residual.

ARCache (CVPR 2026; no code, our reading) takes r_b + l (r_a - r_b), with r_a the newest computed residual and r_b the
one before, where l says how far the first segment, which was made exactly, was from r_b at this step, over how far r_a
was. That takes all of that segment's residuals; we add up its changes from step to step instead, a number a step, which
is the same where it goes straight on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point


@dataclass(kw_only=True)
class FromFirst(Forecast):
    """With one computed output, or at a time that the first chunk has not come to yet, it holds."""

    depth: ClassVar[int] = 2
    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first: int | None = None  # chunk
        self._times: list[float] = []  # that it computed at, rising
        self._passed: list[Tensor] = []  # mean absolute changes up to there; on the device, nothing waits for them

    def observe(self, chunk: int, t: float, output: Tensor, before: Point | None) -> None:
        if self._first is None:
            self._first, self._sign = chunk, 1
        if chunk != self._first:
            return
        if before is None:
            self._times, self._passed = [t], [output.new_zeros((), dtype=torch.float32)]
        elif t != before.t:
            if len(self._times) == 1:
                self._sign = 1 if t > before.t else -1
                self._times[0] *= self._sign
            self._times.append(self._sign * t)
            self._passed.append(self._passed[-1] + (output.float() - before.output.float()).abs().mean())

    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        newest, before = points[0], points[-1]
        passed = [self._at(time) for time in (t, newest.t, before.t)]
        if newest.t == before.t or None in passed:
            return newest.output
        there, here, last = passed
        ahead = ((there - here) / (here - last)).nan_to_num(0.0, 0.0, 0.0)  # 0 / 0, where nothing changed
        return newest.output + (newest.output - before.output) * ahead

    def _at(self, t: float) -> Tensor | None:
        """How far the first chunk had come by a time; None beyond what it has shown."""
        if len(self._times) < 2 or not self._times[0] <= (place := self._sign * t) <= self._times[-1]:
            return None
        low = min(bisect_right(self._times, place) - 1, len(self._times) - 2)
        part = (place - self._times[low]) / (self._times[low + 1] - self._times[low])
        return self._passed[low] + part * (self._passed[low + 1] - self._passed[low])
