"""ARCache (CVPR 2026) on chunks: the history's change decides when a chunk computes.

No code is published, and we have a description, not the text; this is our reading. The paper measures how the hidden
states of the history's tokens change between steps. Here finished chunks are keys in a cache, which do not change, so
that a chunk's history is the older chunks that are still being made; where there is none, the chunk itself counts. What
a skipped step takes is another part: conf/method/ar_cache.yaml takes a residual scaled by what the first chunk showed
(baselines/from_first.py), which is why that one computes every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.options import check_choice, check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class ArCache(ReusePolicy):
    """A chunk skips while its history's relative changes since it last computed add up to less than the threshold.

    The video's first chunk computes every step, and every chunk its first steps and its last one.

    Attributes:
        threshold: accumulated change of the history below which a chunk skips (delta in the paper); 0 never.
        warmup_steps: first steps of each chunk that always compute.
        distance: of which features, "embedded_latent" (the first hidden states) or "latent".
    """

    threshold: float
    warmup_steps: int
    distance: str = "embedded_latent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        check_choice("distance", self.distance, ("embedded_latent", "latent"))

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(tuple(s.chunk for s in row.steps if not self._skips(s, distances, schedule)))

    def _skips(self, step: ChunkStep, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> bool:
        chunk, skips, total = step.chunk, False, 0.0
        always = chunk == schedule.prefix_chunks or step.step < max(1, self.warmup_steps)
        if not always and chunk in distances and step.step < schedule.steps_of(chunk) - 1:
            history = [distances[older] for older in distances if older < chunk] or [distances[chunk]]
            size = sum(each.magnitude for each in history)
            total = self.accumulated[chunk] + sum(each.change for each in history) / (size + 1e-8)
            skips = total < self.threshold
        self.accumulated[chunk] = total if skips else 0.0
        return skips
