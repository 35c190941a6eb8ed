"""MagCache's table: how much larger or smaller outputs become from one step to the next, by guidance branch.

MagCache (arXiv 2506.09045) keeps a ratio for every step number, and takes it for any step in that place, however long.
Here the ratios are those of steps of known times: what lies between two times is their part of the sum of logarithms.
So a table holds for any number of steps, and a step half as long has the root of the ratio.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from flowcache.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class Magnitudes(Calibration):
    """Attributes.

    times: [N], before each step of the grid that it was made on, rising or falling.
    ratios: of each guidance branch, [N - 1]: mean over tokens of the output's norm over its channels, in the step that
        begins at ``times[i + 1]`` over that in the step before.
    """

    kind: ClassVar[str] = "table"
    option: ClassVar[str] = "reuse.table"
    made_by: ClassVar[str] = "reuse=magcache"
    times: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]

    @classmethod
    def taken(cls, data: dict[str, Any]) -> dict[str, Any]:
        times = tuple(map(float, data.pop("times")))
        ratios = tuple(tuple(map(float, own)) for own in data.pop("ratios"))
        steps = [after - before for before, after in pairwise(times)]
        if not steps or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
            raise ValueError("its times must rise or fall, from the first of at least two steps on")
        if not ratios or any(len(own) != len(steps) for own in ratios):
            raise ValueError(f"every branch of it needs {len(steps)} ratios, one a step from the second on")
        if not all(math.isfinite(ratio) and ratio > 0 for own in ratios for ratio in own):
            raise ValueError("its ratios must be finite and above 0")
        return {"times": times, "ratios": ratios}

    def ratio(self, branch: int, before: float, t: float) -> float:
        """From a step at one time to that at another; beyond the table's times nothing changes."""
        return math.exp(self._passed(branch, t) - self._passed(branch, before))

    def published_ratio(self, branch: int, step: int, num_steps: int) -> float:
        """Of a step by its number alone, as published: the nearest of the table's, of which the first one's is 1
        (Zehong-Ma/MagCache: MagCache4Wan2.1/magcache_generate.py)."""
        ratios = (1.0, *self.ratios[branch])
        last = len(ratios) - 1
        return ratios[round(step * last / (num_steps - 1)) if num_steps > 1 else last]

    def _passed(self, branch: int, t: float) -> float:
        """Logarithm of the magnitude at a time over that at the first."""
        times, passed = self._logarithms
        place = t if self.times[0] < self.times[-1] else -t
        place = min(max(place, times[0]), times[-1])
        low = min(bisect_right(times, place) - 1, len(times) - 2)
        part = (place - times[low]) / (times[low + 1] - times[low])
        return passed[branch][low] + part * (passed[branch][low + 1] - passed[branch][low])

    @cached_property
    def _logarithms(self) -> tuple[list[float], list[list[float]]]:
        """Times, rising, and by branch the sums up to each."""
        sign = 1 if self.times[0] < self.times[-1] else -1
        return [sign * t for t in self.times], [
            list(accumulate((math.log(ratio) for ratio in own), initial=0.0)) for own in self.ratios
        ]
