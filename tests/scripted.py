"""Methods made up for tests: any policy, or a rule that decides by the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowcache.distance import ChunkDistance
from flowcache.method import MethodConfig
from flowcache.policy import Decision, ReusePolicy
from flowcache.schedule import Row, Schedule


@dataclass(frozen=True, kw_only=True)
class Scripted(MethodConfig):
    """Any policy, with a method's shared options."""

    make: Callable[[], ReusePolicy]

    def policy(self) -> ReusePolicy:
        return self.make()


class _ByRow:
    distance: str | None = None

    def __init__(self, rule: Callable[[Row], Decision]) -> None:
        self.rule = rule
        self.accumulated: dict[int, float] = {}

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return self.rule(row)


def by_row(rule: Callable[[Row], Decision], **options: Any) -> Scripted:
    """A method that decides by the row alone."""
    return Scripted(make=lambda: _ByRow(rule), **options)
