"""Every k-th step: after its warm-up a chunk computes each k-th of its own steps and reuses in between.

The honest trivial baseline: no distance, no threshold, no look at the content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.options import check_warmup, check_warmup_fits, is_number
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class EveryK(ReusePolicy):
    """Attributes: ``every`` computes one step in so many (1 = all, 2.5 too); ``warmup_steps`` always compute first."""

    every: float
    warmup_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_warmup(self.warmup_steps)
        if not (is_number(self.every) and 1 <= self.every < math.inf):
            raise ValueError(f"every={self.every!r} must be a finite number of at least 1 (1 computes every step)")
        if self.every == int(self.every):
            self.every = int(self.every)  # 2.0 is the same method as 2, and is told as such

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(tuple(s.chunk for s in row.steps if self._computes(s.step, schedule.steps_of(s.chunk))))

    def _computes(self, step: int, num_steps: int) -> bool:
        # The steps before `warmup_steps`, then every k-th counted from the last of them, and the last step. A multiple
        # of k that is no whole number is the step nearest to it, halves up, so that gaps differ by one step at most.
        after_warmup = step - max(0, self.warmup_steps - 1)
        nearest = math.floor(round(after_warmup / self.every) * self.every + 0.5)
        return after_warmup < 0 or after_warmup == nearest or step == num_steps - 1
