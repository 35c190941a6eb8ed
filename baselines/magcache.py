"""MagCache (arXiv 2506.09045) on chunks: how far known ratios of magnitude drift apart says how long a chunk skips.

Source: Zehong-Ma/MagCache: MagCache4Wan2.1/magcache_generate.py. What is measured is what the forecast is of; a skipped
step takes another part's forecast, as published the last output (hold).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from baselines.magnitudes import Magnitudes
from flowcache.calibration import Calibration
from flowcache.options import check_choice, check_share, check_switches, check_threshold, is_count
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import ChunkStep, Row, Schedule

BRANCHES = 2  # of a row with guidance: with the prompt, and without


@dataclass
class _Run:
    """Of one chunk and branch, since it last computed: product of the ratios, sum of its distances from 1, steps
    skipped; and the time of its newest step."""

    t: float
    product: float = 1.0
    error: float = 0.0
    skipped: int = 0


@dataclass(kw_only=True)
class MagCache(ReusePolicy):
    """A step is skipped while |1 - product of the ratios since the last computed step|, summed over the skipped steps,
    stays below the threshold, and not too many were skipped already.

    Attributes:
        table: a file of ratios that was calibrated on the model, or what it holds; None takes every ratio as 1, so that
            ``most_skips`` alone decides.
        threshold: sum of deviations below which a chunk skips; 0 never.
        most_skips: steps that a chunk skips in a row, at most (K in the paper); 0 never.
        retention: share of a chunk's first steps that always compute, from 0 to 1. The first one always does.
        branches: "together" decides by the first guidance branch for all of them, "apart" in each by its own ratios, as
            published; a model must let branches skip by themselves for that.
        published: ratios by step number, whatever the steps' times, and no last step that always computes.
    """

    calibrated: ClassVar[tuple[type[Calibration], ...]] = (Magnitudes,)
    table: Magnitudes | str | Path | None = None
    threshold: float
    most_skips: int
    retention: float
    branches: str = "together"
    published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if not is_count(self.most_skips, least=0):
            raise ValueError(f"most_skips={self.most_skips!r} must be a whole number of at least 0 (0 never skips)")
        check_share(retention=self.retention)
        check_choice("branches", self.branches, ("together", "apart"))
        check_switches(published=self.published)
        if self.table is not None and len(self.table.ratios) < self._num_branches:
            raise ValueError(
                f"branches='apart' needs ratios of {BRANCHES} guidance branches, and the table {self.table.name} has "
                f"{len(self.table.ratios)}; choose branches='together', or calibrate one where branches are forecast "
                "each by itself: python -m experiments.calibrate reuse=magcache"
            )
        self._runs: dict[tuple[int, int], _Run] = {}

    @property
    def uses(self) -> tuple[str, ...]:
        return ("branches",) if self.branches == "apart" else ()

    @property
    def _num_branches(self) -> int:
        return BRANCHES if self.branches == "apart" else 1

    def check_schedule(self, schedule: Schedule) -> None:
        if self.table is None:
            warnings.warn(
                "reuse=magcache has no table of ratios and takes them all as 1, so that most_skips alone decides; make "
                "one for this model and setting with python -m experiments.calibrate reuse=magcache model=... "
                "setting=...",
                stacklevel=2,
            )

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        computed = tuple(
            tuple(step.chunk for step in row.steps if not self._skips(branch, step, schedule.steps_of(step.chunk)))
            for branch in range(self._num_branches)
        )
        self.accumulated = {step.chunk: self._runs[0, step.chunk].error for step in row.steps}
        return Decision(computed[0], branches=computed if self.branches == "apart" else ())

    def _skips(self, branch: int, step: ChunkStep, num_steps: int) -> bool:
        if step.step == 0:
            self._runs[branch, step.chunk] = _Run(step.t)
        run = self._runs[branch, step.chunk]
        before, run.t = run.t, step.t
        if self._always(branch, step.step, num_steps):
            return False
        run.product *= self._ratio(branch, step, before, num_steps)
        run.skipped += 1
        run.error += abs(1 - run.product)
        if run.error < self.threshold and run.skipped <= self.most_skips:
            return True
        self._runs[branch, step.chunk] = _Run(step.t)
        return False

    def _always(self, branch: int, step: int, num_steps: int) -> bool:
        if self.published:  # it counts calls, of which a step is one in each branch
            call = self._num_branches * step + branch
            return step == 0 or call < int(self._num_branches * num_steps * self.retention)
        return step < max(1, int(num_steps * self.retention + 0.5)) or step == num_steps - 1

    def _ratio(self, branch: int, step: ChunkStep, before: float, num_steps: int) -> float:
        if self.table is None:
            return 1.0
        if self.published:
            return self.table.published_ratio(branch, step.step, num_steps)
        return self.table.ratio(branch, before, step.t)
