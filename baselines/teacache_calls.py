"""TeaCache as published for SkyReels-V2: every network call decides for itself, by a counter of calls.

Source: SkyworkAI/SkyReels-V2: skyreels_v2_infer/modules/transformer.py. The sound method is baselines/teacache.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.teacache import TeaCacheConfig, relative_change
from flowcache.distance import ChunkDistance, Polynomial, rescaling
from flowcache.policy import Decision, ReusePolicy
from flowcache.schedule import Row, Schedule

BRANCHES = 2  # a row is two calls: with the prompt, and without


class CountedReuse:
    """Each guidance branch accumulates for itself and computes while the call counter stands below two warm-ups.

    The counter counts calls but starts over after as many as the window has rows, which is half-way, so that the
    retained steps recur there; where a window has an odd number of rows, the branches then decide apart (fidelity row
    18). Without guidance, one call a row, upstream mixes its rows up; that is not followed.
    """

    def __init__(self, threshold: float, warmup_steps: int, distance: str, polynomial: Polynomial | None) -> None:
        self.threshold, self.warmup_steps, self.distance = threshold, warmup_steps, distance
        self.rescaled = rescaling(polynomial)
        self.totals = [0.0] * BRANCHES
        self.accumulated: dict[int, float] = {}

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        rows = schedule.windows[row.window].rows
        change = self.rescaled(relative_change(distances)) if distances else 0.0
        computed = []
        for branch in range(BRANCHES):
            call = (BRANCHES * (row.index - rows[0]) + branch) % len(rows)
            self.totals[branch] += change
            computes = call < BRANCHES * self.warmup_steps or not self.totals[branch] < self.threshold
            if computes:
                self.totals[branch] = 0.0
            computed.append(row.chunks if computes else ())
        self.accumulated = dict.fromkeys(row.chunks, self.totals[0])
        return Decision(computed[0], branches=tuple(computed))


@dataclass(frozen=True, kw_only=True)
class TeaCacheCallsConfig(TeaCacheConfig):
    """TeaCache whose ``published`` behaviour is that of SkyReels-V2; otherwise TeaCacheConfig."""

    def policy(self) -> ReusePolicy:
        if not self.published:
            return super().policy()
        return CountedReuse(self.threshold, self.warmup_steps, self.distance, self.polynomial)
