"""Given decisions, row by row, such as those of a recorded trace (``flowcache.trace.Trace.computed_rows``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class Replay(ReusePolicy):
    """Attributes: ``computed`` holds the chunks to compute, for every row."""

    computed: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.computed = tuple(tuple(sorted(chunks)) for chunks in self.computed)

    def check_schedule(self, schedule: Schedule) -> None:
        if len(self.computed) != len(schedule.rows):
            raise ValueError(
                f"the recorded decisions have {len(self.computed)} rows and this generation {len(schedule.rows)}; "
                "replay a recording of the same number of chunks, steps and prefix chunks"
            )
        for row, compute in zip(schedule.rows, self.computed, strict=True):
            if foreign := set(compute) - set(row.chunks):
                raise ValueError(
                    f"row {row.index} of the recording computes chunk {min(foreign)}, which is not active there"
                )

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(self.computed[row.index])

    def whole_rows(self, schedule: Schedule) -> bool:
        return all(compute in ((), row.chunks) for row, compute in zip(schedule.rows, self.computed, strict=True))
