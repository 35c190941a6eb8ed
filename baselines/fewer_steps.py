"""Fewer steps: a chunk computes the steps of a list, and no others.

What few-step models must be compared with: there, a reused clean estimate that is noised again is the same as leaving
the step out, so that step reuse is worth something only if it beats a shorter list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class FewerSteps(ReusePolicy):
    """Attributes: ``steps`` of a chunk's own, from 0 on and rising, that compute."""

    steps: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(isinstance(step, int) and not isinstance(step, bool) for step in self.steps)
        self.steps = tuple(self.steps)
        if not (whole and self.steps and self.steps[0] == 0 and list(self.steps) == sorted(set(self.steps))):
            raise ValueError(f"steps={list(self.steps)} must be whole numbers that rise from 0, such as [0,1,3]")

    def check_schedule(self, schedule: Schedule) -> None:
        if self.steps[-1] >= schedule.num_steps:
            raise ValueError(
                f"steps={list(self.steps)} names step {self.steps[-1]}, but a chunk has {schedule.num_steps}, from 0 on"
            )

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(tuple(step.chunk for step in row.steps if step.step in self.steps))
