"""TeaCache (arXiv 2411.19108) on chunks: one accumulated distance and one decision for all active chunks.

The distance is the relative L1 change of all measured chunks together: on MAGI-1 the active ones, on SkyReels-V2 with
its native attention the whole window. The published adaptation to MAGI-1 is mikeallen39/FlowCache:
inference/pipeline/teacache.py; the one to SkyReels-V2 is in baselines/uniform_calls.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.options import check_switches, check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class Uniform(ReusePolicy):
    """Reuse all active chunks while the accumulated distance stays below the threshold, else compute all.

    The first ``warmup_steps`` rows and the first and last row of a window compute, and a chunk that was not measured in
    the row before always does: it has nothing to reuse.

    Attributes:
        threshold: accumulated distance below which all chunks reuse; higher reuses more. 0 never reuses.
        warmup_steps: first rows of a window that always compute.
        distance: "embedded_latent" as published on MAGI-1, "rescaled_modulation" as published on SkyReels-V2, or
            "latent".
        polynomial: that a rescaled distance is put through, see ``flowcache.reuse.chunkwise.Chunkwise``.
        published: follow the official adaptation where it differs (fidelity row 17), as far as it runs: when the window
            grows below the threshold, only the new chunk computes, seeing only itself, and the others do not move; when
            one chunk leaves as another enters, features of different chunks are compared, a distance beyond any
            threshold in use. MAGI-1 only.
    """

    threshold: float
    warmup_steps: int
    distance: str = "embedded_latent"
    polynomial: Polynomial | None = None
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        self.polynomial = checked_polynomial(self.distance, self.polynomial)
        check_switches(published=self.published)
        self._rescaled = rescaling(self.polynomial)
        self.total = 0.0
        self._before: tuple[int, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        return ("held", "isolated") if self.published else ()

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, max(len(window.rows) for window in schedule.windows), "rows of a window")

    def whole_rows(self, schedule: Schedule) -> bool:
        # Without a cache a window is measured as a whole, so that its new chunks were measured in the row before.
        return not self.published

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        decision = self._decide(row, distances, schedule)
        self._before = row.chunks
        self.accumulated = dict.fromkeys(row.chunks, self.total)
        return decision

    def _decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        new = tuple(chunk for chunk in row.chunks if chunk not in distances)
        rows = schedule.windows[row.window].rows
        if row.index in (rows[0], rows[-1]) or row.index < rows[0] + self.warmup_steps:
            if self.published and new and row.index > 0 and len(row.chunks) > len(self._before):
                return self._grow(row, new)
            self.total = 0.0
            return Decision(row.chunks)
        if self.published and new and len(row.chunks) == len(self._before):
            self.total = 0.0
            return Decision(row.chunks)
        self.total += self._rescaled(relative_change(distances))
        # A rescaled distance can be negative, and 0 still never reuses.
        below = self.threshold > 0 and self.total < self.threshold
        if not below:
            self.total = 0.0
        if self.published and new:
            # The official code tests the accumulator after its reset, so growth always takes this path.
            return self._grow(row, new)
        return Decision(new if below else row.chunks)

    def _grow(self, row: Row, new: tuple[int, ...]) -> Decision:
        if row.index < self.warmup_steps:
            self.total = 0.0
        return Decision(new, held=tuple(chunk for chunk in row.chunks if chunk not in new), isolated=new)


def relative_change(distances: Mapping[int, ChunkDistance]) -> float:
    """Relative change of all measured chunks together; chunks are of one size, so means add up."""
    magnitude = sum(d.magnitude for d in distances.values())
    return sum(d.change for d in distances.values()) / magnitude if magnitude else 0.0
