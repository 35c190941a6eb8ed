"""No reuse: every active chunk computes in every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class Never(ReusePolicy):
    skips: ClassVar[bool] = False

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(compute=row.chunks)

    def whole_rows(self, schedule: Schedule) -> bool:
        return True
