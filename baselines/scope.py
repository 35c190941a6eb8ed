"""SCOPE's three actions (arXiv 2604.02979): a chunk repeats, forecasts or computes, by two thresholds.

No code is published. This is our reading of the paper's description, not a reproduction: a small change repeats, a
middle one takes a Taylor forecast over the noise level, with its error kept in bounds, and a large one computes. What
the forecast is, is another part: conf/method/scope.yaml takes a damped and limited line. The paper's other half,
forwards of the active frames alone, is how cached attention computes here in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flowcache.options import check_counts, check_threshold, check_warmup, check_warmup_fits
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, Polynomial, checked_polynomial, rescaling
from flowcache.schedule import ChunkStep, Row, Schedule


@dataclass(kw_only=True)
class Scope(ReusePolicy):
    """Every chunk accumulates its own distance f since it last computed, as in ``flowcache.reuse.chunkwise.Chunkwise``.

    f < ``repeat_threshold``: it takes its last output once more; f < ``threshold``: its forecast, if there are two
    computed outputs to forecast from; else it computes and f starts over. Its first steps and its last one compute.

    Attributes:
        repeat_threshold: accumulated distance below which a chunk repeats; 0 never repeats.
        threshold: accumulated distance below which it forecasts, at least ``repeat_threshold``; 0 always computes.
        most_forecasts: forecasts that a chunk takes before it computes again, at most; 0 never forecasts.
        warmup_steps: first steps of each chunk that always compute.
        distance: "embedded_latent", "latent" or "rescaled_modulation"; the paper's own we do not know.
        polynomial: that a rescaled distance is put through, see ``Chunkwise``.
    """

    uses: ClassVar[tuple[str, ...]] = ("repeat",)
    repeat_threshold: float
    threshold: float
    most_forecasts: int
    warmup_steps: int
    distance: str = "embedded_latent"
    polynomial: Polynomial | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_threshold(self.repeat_threshold, "repeat_threshold", "never repeats")
        if self.repeat_threshold > self.threshold:
            raise ValueError(
                f"repeat_threshold={self.repeat_threshold!r} must not be above threshold={self.threshold!r}: "
                "a chunk repeats below the first, forecasts between the two, and computes from the second on"
            )
        check_counts(0, most_forecasts=self.most_forecasts)
        check_warmup(self.warmup_steps)
        self.polynomial = checked_polynomial(self.distance, self.polynomial)
        self._rescaled = rescaling(self.polynomial)
        self._computed: dict[int, list[int]] = {}  # a chunk's last two steps that computed
        self._forecasts: dict[int, int] = {}  # that it has taken since

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        actions = [(step.chunk, self._action(step, distances, schedule)) for step in row.steps]
        computed = tuple(chunk for chunk, action in actions if action == "compute")
        return Decision(computed, repeat=tuple(chunk for chunk, action in actions if action == "repeat"))

    def _action(self, step: ChunkStep, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> str:
        chunk = step.chunk
        if chunk in distances and max(1, self.warmup_steps) <= step.step < schedule.steps_of(chunk) - 1:
            total = self.accumulated[chunk] + self._rescaled(distances[chunk].relative)
            action = "compute"  # of NaN, too; and at a threshold of 0, though a rescaled distance can be negative
            if self.repeat_threshold > 0 and total < self.repeat_threshold:
                action = "repeat"
            elif self.threshold > 0 and total < self.threshold and self._can_forecast(chunk, schedule):
                action = "forecast"
            if action != "compute":
                self.accumulated[chunk] = total
                self._forecasts[chunk] += action == "forecast"
                return action
        self.accumulated[chunk], self._forecasts[chunk] = 0.0, 0
        before = self._computed[chunk][-1:] if step.step > 0 else []
        self._computed[chunk] = [*before, step.step]
        return "compute"

    def _can_forecast(self, chunk: int, schedule: Schedule) -> bool:
        # What was computed before a jump of the outputs is forgotten (flowcache.forecast.history).
        before, newest = self._computed[chunk][0], self._computed[chunk][-1]
        jumped = any(before < jump <= newest for jump in schedule.jumps(chunk))
        return before < newest and not jumped and self._forecasts[chunk] < self.most_forecasts
