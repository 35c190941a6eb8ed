"""Our policy: a chunk computes in steps that were chosen before, where its output really turns.

Decisions are fixed before the first row: nothing is measured, and nothing waits for the device. A plan comes from
``python -m experiments.calibrate reuse=placed``, which records vanilla's outputs of a few prompts and finds the
cheapest path over steps (experiments/studies/placement.py). LeMiCa (arXiv 2511.00090) and DPCache place a video's steps
by such a path; here each chunk has steps of its own, by its position, and a neighbour's end is known.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

from flowcache.calibration import Calibration
from flowcache.options import check_share
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.plan import Plan
from flowcache.schedule import Row, Schedule


@dataclass(kw_only=True)
class Placed(ReusePolicy):
    """Attributes.

    share: of vanilla's FLOPs that the plan leaves, one of the plan's; without a plan, of each chunk's steps.
    plan: a file that was calibrated on the model, or what it holds; None places steps evenly, but denser where a chunk
        begins and where its neighbour finishes, which is worth less.
    """

    calibrated: ClassVar[tuple[type[Calibration], ...]] = (Plan,)
    share: float
    plan: Plan | str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(share=self.share)
        self._steps: dict[int, frozenset[int]] | None = None

    def check_schedule(self, schedule: Schedule) -> None:
        if self.plan is None:
            warnings.warn(
                "reuse=placed has no plan and places steps by a plain rule, which keeps less of the video; make one "
                "for this model and setting with python -m experiments.calibrate reuse=placed model=... setting=...",
                stacklevel=2,
            )
            return
        steps = self.plan.steps(self.share, schedule)
        if not self.plan.is_of(schedule, self.share):
            part = sum(map(len, steps.values())) / (len(steps) * schedule.num_steps)
            warnings.warn(
                f"the plan {self.plan.name} was made for another grid of {len(self.plan.times) - 1} steps, or chunks "
                f"that finish at others, and is carried over to these {schedule.num_steps}, of which {part:.2f} then "
                "compute; one made for them keeps more: python -m experiments.calibrate reuse=placed",
                stacklevel=2,
            )

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        if self._steps is None:
            self._steps = self.computed_steps(schedule)
        return Decision(tuple(step.chunk for step in row.steps if step.step in self._steps[step.chunk]))

    def computed_steps(self, schedule: Schedule) -> dict[int, frozenset[int]]:
        """The own steps that each generated chunk computes."""
        if self.plan is not None:
            return self.plan.steps(self.share, schedule)
        chunks = (chunk for window in schedule.windows for chunk in window.generated)
        return {chunk: _plain_steps(self.share, schedule.steps_of(chunk), schedule.jumps(chunk)) for chunk in chunks}


def _plain_steps(share: float, num_steps: int, jumps: tuple[int, ...]) -> frozenset[int]:
    """Steps at even parts of a density: three times as high at a chunk's beginning and at its jumps as elsewhere."""
    width = num_steps / 16
    density = [1 + 2 * sum(math.exp(-abs(step - at) / width) for at in (0, *jumps)) for step in range(num_steps)]
    chosen = {0, num_steps - 1, *jumps}
    passed = list(accumulate(density))
    wanted = max(0, round(share * num_steps) - len(chosen))
    for i in range(wanted):
        place = bisect_left(passed, (i + 0.5) / wanted * passed[-1])
        chosen.add(min((s for s in range(num_steps) if s not in chosen), key=lambda step: abs(step - place)))
    return frozenset(chosen)
