"""X-Cache's gate (arXiv 2604.20289 v2): a chunk skips a step where it is like the chunk before at the same step.

No code is published; this is our reading, of whole chunks where the paper decides block by block. It compares each
block's input, which needs the first block always computed and a decision within every forward. Here a row has one
decision, before anything is computed, so that the first step stands in for the first block, and what is compared is the
clean latent that the chunk's last step came to: its input without the noise, which is another in every chunk and would
hide any likeness. What a skipped step takes is another part: conf/method/x_cache.yaml takes the change of the chunk
before. Passes that write a finished chunk's keys always compute, as with every policy (``Method.refresh_clean_kv``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.options import (
    check_choice,
    check_counts,
    check_share,
    check_threshold,
    check_warmup,
    check_warmup_fits,
    is_finite,
)
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class XCache(ReusePolicy):
    """A step is skipped where the fingerprint passes both tests: its least cosine is at least max(``least_cosine``,
    the step's usual one - ``cosine_margin``), and its greatest change is less than ``most_deviation`` of its mean size.

    Attributes:
        fingerprint_tokens: compared tokens of a chunk, beside their mean (K in the paper).
        least_cosine: from -1 to 1.
        cosine_margin: at least 0; that a step's least cosine may lie below its usual one.
        cosine_rate: from 0 to 1; how fast the usual one follows (an exponential moving average).
        most_deviation: at least 0; 0 never skips.
        most_skips: chunks in a row that skip the same step before one computes it (M in the paper); 0 never skips.
        warmup_chunks: first chunks that compute every step (W in the paper). The first one always does.
        warmup_steps: first steps of a chunk that always compute. The first one always does.
        distance: what is compared, "clean" or, with its noise, "embedded_latent".
    """

    fingerprint_tokens: int
    least_cosine: float
    cosine_margin: float
    cosine_rate: float
    most_deviation: float
    most_skips: int
    warmup_chunks: int
    warmup_steps: int
    distance: str = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(fingerprint_tokens=self.fingerprint_tokens)
        check_counts(0, most_skips=self.most_skips, warmup_chunks=self.warmup_chunks)
        if not (is_finite(self.least_cosine) and -1 <= self.least_cosine <= 1):
            raise ValueError(f"least_cosine={self.least_cosine!r} must be a number from -1 to 1")
        check_threshold(self.cosine_margin, "cosine_margin", "allows none below the usual one")
        check_share(cosine_rate=self.cosine_rate)
        check_threshold(self.most_deviation, "most_deviation")
        check_warmup(self.warmup_steps)
        check_choice("distance", self.distance, ("clean", "embedded_latent"))
        self._usual: dict[int, float] = {}  # cosine, of every own step
        self._skipped: dict[int, int] = {}  # chunks in a row, of every own step

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(tuple(s.chunk for s in row.steps if not self._skips(s, distances.get(s.chunk), schedule)))

    def _skips(self, step: ChunkStep, distance: ChunkDistance | None, schedule: Schedule) -> bool:
        opens = distance is not None and self._opens(step.step, distance)
        always = step.chunk - schedule.prefix_chunks < self.warmup_chunks or step.step < max(1, self.warmup_steps)
        before = self._skipped.get(step.step, 0)
        skips = opens and not always and before < self.most_skips
        self._skipped[step.step] = before + 1 if skips else 0
        return skips

    def _opens(self, step: int, distance: ChunkDistance) -> bool:
        cosine = distance.cosine
        if math.isnan(cosine):
            return False
        usual = self._usual.get(step, cosine)
        self._usual[step] = usual + self.cosine_rate * (cosine - usual)
        least = max(self.least_cosine, usual - self.cosine_margin)
        return cosine >= least and distance.relative < self.most_deviation
