"""Reuse policies: which active chunks to compute in a row. Policies see numbers only, never tensors or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flowcache.distance import ChunkDistance, Polynomial, rescaling
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(frozen=True)
class Decision:
    """What happens to a row's active chunks.

    compute: chunks that run through the network, oldest first; every other active chunk reuses what it computed last.
    held: chunks that do not move at all, and isolated: computed chunks that attend only to themselves. Both exist for
        the published TeaCache on MAGI-1 (see baselines/teacache.py) and are empty for every sound policy.
    branches: the chunks to compute in each guidance branch, where they differ (``compute`` is then the first of them);
        for the published TeaCache on SkyReels-V2 (see baselines/teacache_calls.py), and empty otherwise.
    """

    compute: tuple[int, ...]
    held: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    branches: tuple[tuple[int, ...], ...] = ()

    def of_branch(self, branch: int) -> tuple[int, ...]:
        """Chunks to compute in a guidance branch."""
        return self.branches[branch] if self.branches else self.compute


class ReusePolicy(Protocol):
    """Decides row by row. One object serves one generation.

    Attributes:
        distance: which distance it needs ("embedded_latent", "latent", ...), or None if it decides without one.
        accumulated: the accumulated distance of each chunk after the last decision, for the trace.
    """

    distance: str | None
    accumulated: dict[int, float]

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        """``distances`` holds the chunks that were also measured in the row before."""
        ...


class ComputeAll:
    """No reuse."""

    distance: str | None = None

    def __init__(self) -> None:
        self.accumulated: dict[int, float] = {}

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(compute=row.chunks)


class ChunkwiseReuse:
    """FlowCache: every chunk keeps its own accumulated distance f and reuses while f stays below the threshold.

    A chunk computes in its first ``warmup_steps`` steps and in its last one (f = 0); in between it adds the distance d
    of the row and reuses if f + d < threshold, else computes and resets f (paper, section 3.2; the comparison is strict
    as in mikeallen39/FlowCache: inference/pipeline/cache/cachereuse.py).

    Args:
        threshold: at least 0; 0 never reuses.
        warmup_steps: at least 0. A chunk's first step always computes: it has nothing to reuse.
        last_step: "own" computes every chunk's last step; "global" only the very first and last row, as published.
        distance: name of the distance.
        polynomial: that d is put through, see ``flowcache.distance.rescaling``.
    """

    def __init__(
        self,
        threshold: float,
        warmup_steps: int,
        last_step: Literal["own", "global"],
        distance: str | None,
        polynomial: Polynomial | None = None,
    ) -> None:
        self.threshold, self.warmup_steps, self.last_step, self.distance = threshold, warmup_steps, last_step, distance
        self.rescaled = rescaling(polynomial)
        self.accumulated: dict[int, float] = {}

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        edge_row = row.index in (0, len(schedule.rows) - 1)
        return Decision(tuple(s.chunk for s in row.steps if self._computes(s, distances, schedule, edge_row)))

    def _computes(
        self, step: ChunkStep, distances: Mapping[int, ChunkDistance], schedule: Schedule, edge_row: bool
    ) -> bool:
        last = edge_row if self.last_step == "global" else step.step == schedule.num_steps - 1
        if step.step < self.warmup_steps or step.chunk not in distances or last:
            self.accumulated[step.chunk] = 0.0
            return True
        accumulated = self.accumulated.get(step.chunk, 0.0) + self.rescaled(distances[step.chunk].relative)
        # A NaN distance computes; a rescaled one can be negative, and 0 still never reuses.
        computes = self.threshold == 0 or not accumulated < self.threshold
        self.accumulated[step.chunk] = 0.0 if computes else accumulated
        return computes


class Replay:
    """Follows given decisions, row by row, such as those of a recorded trace.

    Args:
        computed: for every row the chunks to compute.
    """

    distance: str | None = None

    def __init__(self, computed: Sequence[Sequence[int]]) -> None:
        self.computed = [tuple(sorted(chunks)) for chunks in computed]
        self.accumulated: dict[int, float] = {}

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        if len(self.computed) != len(schedule.rows):
            raise ValueError(
                f"the recorded decisions have {len(self.computed)} rows and this generation {len(schedule.rows)}; "
                "replay a recording of the same number of chunks, steps and prefix chunks"
            )
        compute = self.computed[row.index]
        foreign = set(compute) - set(row.chunks)
        if foreign:
            raise ValueError(
                f"row {row.index} of the recording computes chunk {min(foreign)}, which is not active there"
            )
        return Decision(compute)
