"""Given decisions, row by row, such as those of a recorded trace (``flowcache.trace.Trace.computed_rows``, and
``repeated_rows``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class Replay(ReusePolicy):
    """Attributes: for every row, ``computed`` holds the chunks to compute, and ``repeated`` those that take their last
    output once more, whatever the forecast; empty where none does in any row."""

    computed: tuple[tuple[int, ...], ...]
    repeated: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.computed, self.repeated = (
            tuple(tuple(sorted(chunks)) for chunks in rows) for rows in (self.computed, self.repeated)
        )
        if len(self.repeated) not in (0, len(self.computed)):
            raise ValueError(
                f"repeated has {len(self.repeated)} rows and computed {len(self.computed)}; give as many, or none"
            )
        if not any(self.repeated):
            self.repeated = ()

    @property
    def uses(self) -> tuple[str, ...]:
        return ("repeat",) if self.repeated else ()

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
        return Decision(self.computed[row.index], repeat=self.repeated[row.index] if self.repeated else ())

    def whole_rows(self, schedule: Schedule) -> bool:
        return all(compute in ((), row.chunks) for row, compute in zip(schedule.rows, self.computed, strict=True))
