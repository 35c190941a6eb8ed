"""EasyCache (arXiv 2507.02860) on chunks: how far the output must have moved, by how fast it moved with the latent.

Source: H-EmbodVis/EasyCache: EasyCache4Wan2.1/easycache_generate.py. No calibration: the rate of the output's change to
the latent's is measured whenever a chunk computes. As published, all guidance branches follow one decision.

Published code repeats the difference of output and latent, whose scale changes from step to step. What a skipped step
takes is another part here; conf/method/easycache.yaml holds the model's own output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowcache.options import check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, Figure, Report, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class EasyCache(ReusePolicy):
    """In every step the error grows by rate times the latent's mean change since the step before, over the mean size of
    the last computed output; a chunk skips while it stays below the threshold.

    The rate is that of the last two computed steps: mean change of the output over mean change of the latent. Without
    one, and in a chunk's last step, it computes.

    Attributes:
        threshold: error below which a chunk skips; 0 never.
        warmup_steps: first steps of each chunk that always compute (R in the paper).
    """

    distance: ClassVar[str] = "latent"
    report: ClassVar[tuple[Figure, ...]] = ("output", "output_change", "input_change")
    threshold: float
    warmup_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        self.rates: dict[int, float] = {}
        self._sizes: dict[int, float] = {}

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        for chunk, report in reports.items():
            self._sizes[chunk] = report.output
            # NaN after a chunk's first computed step, and where the latent has not moved: it then computes.
            moved = report.input_change > 0
            self.rates[chunk] = report.output_change / report.input_change if moved else math.nan

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(
            tuple(s.chunk for s in row.steps if not self._skips(s, distances.get(s.chunk), schedule.steps_of(s.chunk)))
        )

    def _skips(self, step: ChunkStep, distance: ChunkDistance | None, num_steps: int) -> bool:
        chunk, error = step.chunk, math.nan
        if distance is not None and max(1, self.warmup_steps) <= step.step < num_steps - 1:
            change = self.rates.get(chunk, math.nan) * distance.change
            error = self.accumulated[chunk] + change / max(self._sizes.get(chunk, math.nan), 1e-12)
        skips = error < self.threshold
        self.accumulated[chunk] = error if skips else 0.0
        return skips
