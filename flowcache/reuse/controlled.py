"""Ours, without calibration: the forecast's error, seen whenever a chunk computes, steers how long it skips from there.

The step-size control of ODE solvers with a budget. An embedded pair (the forecast and the output computed after all)
tells the error, a step's length to the power 1/2 what it does to the video's end (the later, the less), and a chunk's
position how many steps it may compute: what a window's first chunk gets wrong is in all that follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowcache.options import check_share, is_finite
from flowcache.reuse.base import Decision, Figure, Report, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule

ORDER = 2  # of a linear forecast's error in the steps that it reaches over
MOST_CHANGE = 3.0  # of a gap against the even one that the budget allows
LONGEST_GAP = 1 / 4  # of a chunk's steps


@dataclass(kw_only=True)
class Controlled(ReusePolicy):
    """Attributes.

    share: of all chunk steps, to compute.
    first_ratio: weight of a window's first chunk's squared errors against those of its third and later ones; 1 gives
        every chunk as many steps.
    """

    report: ClassVar[tuple[Figure, ...]] = ("forecast_error", "output")
    share: float
    first_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(share=self.share)
        if not (is_finite(self.first_ratio) and self.first_ratio >= 1):
            raise ValueError(f"first_ratio={self.first_ratio!r} must be a finite number of at least 1 (1: all alike)")
        self._budgets: dict[int, float] | None = None  # computed steps that are left to each chunk
        self._schedule: Schedule | None = None
        self._last: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._errors: dict[int, list[float]] = {}  # logarithms, over a gap of one step

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        if self._budgets is None:
            self._schedule, self._budgets = schedule, self._allowances(schedule)
        return Decision(tuple(step.chunk for step in row.steps if self._computes(step, schedule)))

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        for chunk, report in reports.items():
            step = row.step_of(chunk)
            before = self._last.get(chunk, step.step - 1)
            gap, jumped = step.step - before, any(before < j <= step.step for j in self._schedule.jumps(chunk))
            self._last[chunk] = step.step
            self._budgets[chunk] -= 1
            last = self._schedule.num_steps - 1
            # A step that computes anyway falls anywhere in a gap: half of it is lost.
            forced = sum(jump > step.step for jump in (*self._schedule.jumps(chunk), last))
            even = (last - step.step) / max(1.0, self._budgets[chunk] - forced / 2)
            length = abs(step.t_next - step.t)
            error = report.forecast_error / max(report.output, 1e-12) * math.sqrt(length) / gap**ORDER
            error = math.nan if jumped else error  # of what came before, which is looked back on no longer
            longest = LONGEST_GAP * self._schedule.num_steps  # also where the budget is used up
            self._next[chunk] = step.step + max(1, round(min(longest, even * self._change(chunk, error))))

    def _computes(self, step: ChunkStep, schedule: Schedule) -> bool:
        always = step.step in (0, schedule.steps_of(step.chunk) - 1) or step.step in schedule.jumps(step.chunk)
        return always or step.step >= self._next.get(step.chunk, 0)

    def _change(self, chunk: int, error: float) -> float:
        """Of the even gap: errors that are equal in all gaps add up to the least."""
        seen = self._errors.setdefault(chunk, [])
        if not error > 0:  # NaN: nothing to forecast from yet
            return 1.0
        seen.append(math.log(error))
        change = math.exp((sum(seen) / len(seen) - seen[-1]) / (ORDER + 1))
        return min(MOST_CHANGE, max(1 / MOST_CHANGE, change))

    def _allowances(self, schedule: Schedule) -> dict[int, float]:
        """Computed steps of every chunk: of errors that fall with a gap's length to the power ORDER, in proportion to
        the weight of their squares to the power 1 / (2 ORDER + 1)."""
        weights = {}
        for index, window in enumerate(schedule.windows):
            for place, chunk in enumerate(window.generated):
                weight = 1.0 if index else max(1.0, self.first_ratio ** (1 - place / 2))
                weights[chunk] = weight ** (1 / (2 * ORDER + 1))
        left, allowances = self.share * schedule.num_steps * len(weights), {}
        for chunk in sorted(weights, key=weights.get, reverse=True):  # what a chunk has no steps for goes to the others
            part = left * weights[chunk] / sum(w for other, w in weights.items() if other not in allowances)
            allowances[chunk] = min(schedule.num_steps, part)
            left -= allowances[chunk]
        return allowances
