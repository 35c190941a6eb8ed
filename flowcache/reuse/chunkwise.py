"""FlowCache's policy (arXiv 2602.10825): every chunk accumulates its own distance and decides for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from flowcache.options import check_choice, check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class Chunkwise(ReusePolicy):
    """Every chunk keeps its own accumulated distance f and reuses while f stays below the threshold.

    A chunk computes in its first ``warmup_steps`` steps and in its last one (f = 0); in between it adds the distance d
    of the row and reuses if f + d < threshold, else computes and resets f (paper, section 3.2; the comparison is strict
    as in mikeallen39/FlowCache: inference/pipeline/cache/cachereuse.py).

    Attributes:
        threshold: accumulated distance below which a chunk reuses; higher reuses more. 0 never reuses.
        warmup_steps: first steps of each chunk that always compute (m in the paper), at least 0. A chunk's first step
            always computes: it has nothing to reuse.
        last_step: "own" also computes each chunk's last step; "global" only the very first and last row, as published
            (fidelity row 4).
        distance: "embedded_latent" as published on MAGI-1, "rescaled_modulation" as published on SkyReels-V2 (it
            follows the schedule alone, whatever the content), or "latent" as in the paper's text.
        polynomial: that a rescaled distance is put through: a name of ``flowcache.reuse.distance.POLYNOMIALS``, or its
            coefficients, highest power first.
    """

    threshold: float
    warmup_steps: int
    last_step: Literal["own", "global"] = "own"
    distance: str = "embedded_latent"
    polynomial: Polynomial | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        check_choice("last_step", self.last_step, ("own", "global"))
        self.polynomial = checked_polynomial(self.distance, self.polynomial)
        self._rescaled = rescaling(self.polynomial)

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        edge_row = row.index in (0, len(schedule.rows) - 1)
        return Decision(tuple(s.chunk for s in row.steps if self._computes(s, distances, schedule, edge_row)))

    def _computes(
        self, step: ChunkStep, distances: Mapping[int, ChunkDistance], schedule: Schedule, edge_row: bool
    ) -> bool:
        last = edge_row if self.last_step == "global" else step.step == schedule.steps_of(step.chunk) - 1
        if step.step < self.warmup_steps or step.chunk not in distances or last:
            self.accumulated[step.chunk] = 0.0
            return True
        accumulated = self.accumulated.get(step.chunk, 0.0) + self._rescaled(distances[step.chunk].relative)
        # A NaN distance computes; a rescaled one can be negative, and 0 still never reuses.
        computes = self.threshold == 0 or not accumulated < self.threshold
        self.accumulated[step.chunk] = 0.0 if computes else accumulated
        return computes
