"""SeaCache (arXiv 2602.18993) on chunks: accumulated change of the latent without what is still noise in it.

Source of the gate: diffusers: src/diffusers/hooks/sea_cache.py; of the filter see flowcache.reuse.spectrum. What a
skipped step takes is another part: conf/method/sea_cache.yaml takes a line, as the hook's ``residual_order`` of 1 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowcache.options import check_threshold, check_warmup, check_warmup_fits, is_count
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class SeaCache(ReusePolicy):
    """A chunk skips while the relative changes since it last computed add up to less than the threshold; its first
    steps and its last one compute.

    Attributes:
        threshold: accumulated change below which a chunk skips; 0 never.
        most_skips: steps that a chunk skips in a row, at most; 0 never skips.
        warmup_steps: first steps of each chunk that always compute.
    """

    distance: ClassVar[str] = "filtered_latent"
    threshold: float
    most_skips: int
    warmup_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if not is_count(self.most_skips, least=0):
            raise ValueError(f"most_skips={self.most_skips!r} must be a whole number of at least 0 (0 never skips)")
        check_warmup(self.warmup_steps)
        self._skipped: dict[int, int] = {}

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(
            tuple(s.chunk for s in row.steps if not self._skips(s, distances.get(s.chunk), schedule.steps_of(s.chunk)))
        )

    def _skips(self, step: ChunkStep, distance: ChunkDistance | None, num_steps: int) -> bool:
        chunk, skips, total = step.chunk, False, 0.0
        if distance is not None and max(1, self.warmup_steps) <= step.step < num_steps - 1:
            total = self.accumulated[chunk] + distance.relative
            skips = total < self.threshold and self._skipped[chunk] < self.most_skips
        self.accumulated[chunk] = total if skips else 0.0
        self._skipped[chunk] = self._skipped[chunk] + 1 if skips else 0
        return skips
