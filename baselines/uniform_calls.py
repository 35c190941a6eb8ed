"""TeaCache as published for SkyReels-V2: every network call decides for itself, by a counter of calls.

Source: SkyworkAI/SkyReels-V2: skyreels_v2_infer/modules/transformer.py. The sound policy is baselines/uniform.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from baselines.uniform import relative_change
from flowcache.options import check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import Row, Schedule

BRANCHES = 2  # a row is two calls: with the prompt, and without


@dataclass(kw_only=True)
class UniformCalls(ReusePolicy):
    """Each guidance branch accumulates for itself and computes while the call counter stands below two warm-ups.

    The counter counts calls but starts over after as many as the window has rows, which is half-way, so that the
    retained steps recur there; where a window has an odd number of rows, the branches then decide apart (fidelity row
    18). Without guidance, one call a row, upstream mixes its rows up; that is not followed.

    Attributes: see ``baselines.uniform.Uniform``.
    """

    uses: ClassVar[tuple[str, ...]] = ("branches",)
    needs_window: ClassVar[bool] = True
    threshold: float
    warmup_steps: int
    distance: str = "rescaled_modulation"
    polynomial: Polynomial | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        self.polynomial = checked_polynomial(self.distance, self.polynomial)
        self._rescaled = rescaling(self.polynomial)
        self._totals = [0.0] * BRANCHES

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, max(len(window.rows) for window in schedule.windows), "rows of a window")

    def whole_rows(self, schedule: Schedule) -> bool:
        return True

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        rows = schedule.windows[row.window].rows
        change = self._rescaled(relative_change(distances)) if distances else 0.0
        computed = []
        for branch in range(BRANCHES):
            call = (BRANCHES * (row.index - rows[0]) + branch) % len(rows)
            self._totals[branch] += change
            computes = call < BRANCHES * self.warmup_steps or not self._totals[branch] < self.threshold
            if computes:
                self._totals[branch] = 0.0
            computed.append(row.chunks if computes else ())
        self.accumulated = dict.fromkeys(row.chunks, self._totals[0])
        return Decision(computed[0], branches=tuple(computed))
