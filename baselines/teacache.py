"""TeaCache (arXiv 2411.19108) on chunks: one accumulated distance and one decision for all active chunks.

The distance is the relative L1 change of all active chunks together; the published adaptation to MAGI-1 is
mikeallen39/FlowCache: inference/pipeline/teacache.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.distance import ChunkDistance
from flowcache.method import MethodConfig, check_threshold, check_warmup
from flowcache.policy import Decision, ReusePolicy
from flowcache.schedule import Row, Schedule


class UniformReuse:
    """Reuse all active chunks while the accumulated distance stays below the threshold, else compute all.

    The first ``warmup_steps`` rows and the first and last row compute, and a chunk in its first step always does.

    ``published`` follows the official adaptation where it differs (fidelity row 17), as far as it runs: when the window
    grows below the threshold, only the new chunk computes, seeing only itself, and the others do not move; when one
    chunk leaves as another enters, features of different chunks are compared, a distance beyond any threshold in use.
    """

    def __init__(self, threshold: float, warmup_steps: int, distance: str | None, published: bool) -> None:
        self.threshold, self.warmup_steps, self.distance, self.published = threshold, warmup_steps, distance, published
        self.total = 0.0
        self.accumulated: dict[int, float] = {}
        self._before: tuple[int, ...] = ()

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        decision = self._decide(row, distances, schedule)
        self._before = row.chunks
        self.accumulated = dict.fromkeys(row.chunks, self.total)
        return decision

    def _decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        new = tuple(chunk for chunk in row.chunks if chunk not in self._before)
        if row.index in (0, len(schedule.rows) - 1) or row.index < self.warmup_steps:
            if self.published and new and row.index > 0 and len(row.chunks) > len(self._before):
                return self._grow(row, new)
            self.total = 0.0
            return Decision(row.chunks)
        if self.published and new and len(row.chunks) == len(self._before):
            self.total = 0.0
            return Decision(row.chunks)
        self.total += _relative(distances)
        below = self.total < self.threshold
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


def _relative(distances: Mapping[int, ChunkDistance]) -> float:
    """Relative change of all measured chunks together; chunks are of one size, so means add up."""
    magnitude = sum(d.magnitude for d in distances.values())
    return sum(d.change for d in distances.values()) / magnitude if magnitude else 0.0


@dataclass(frozen=True, kw_only=True)
class TeaCacheConfig(MethodConfig):
    """Attributes.

    threshold: accumulated distance below which all chunks reuse; higher reuses more. 0 never reuses.
    warmup_steps: first rows of the generation that always compute.
    distance: "embedded_latent" as published, or "latent".
    published: the official adaptation's behaviour at changes of the window; see ``UniformReuse``.
    """

    threshold: float
    warmup_steps: int
    distance: str = "embedded_latent"
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)

    def policy(self) -> ReusePolicy:
        return UniformReuse(self.threshold, self.warmup_steps, self.distance, self.published)
