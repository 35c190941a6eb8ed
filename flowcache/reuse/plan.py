"""Plans: which of its own steps a chunk computes, by where it stands in its window; made by calibrating on a model.

``python -m experiments.calibrate reuse=placed`` makes them (flowcache.calibration).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flowcache.calibration import Calibration
from flowcache.schedule import Schedule

Steps = tuple[int, ...]
_KINDS = ("first_window", "later_windows")


@dataclass(frozen=True, kw_only=True)
class Plan(Calibration):
    """Attributes.

    times: of the grid that it was made on, one a step and the end.
    shares: by share of vanilla's FLOPs, and there by "first_window" and "later_windows", the computed steps of each
        generated chunk by its position; chunks further on take the last position's.
    """

    kind: ClassVar[str] = "plan"
    option: ClassVar[str] = "reuse.plan"
    made_by: ClassVar[str] = "reuse=placed"
    times: tuple[float, ...]
    shares: Mapping[float, Mapping[str, tuple[Steps, ...]]]

    @classmethod
    def taken(cls, data: dict[str, Any]) -> dict[str, Any]:
        times = tuple(map(float, data.pop("times")))
        shares = {
            float(share): {kind: tuple(map(tuple, steps[kind])) for kind in _KINDS}
            for share, steps in data.pop("shares").items()
        }
        _check(times, shares)
        return {"times": times, "shares": shares}

    def steps(self, share: float, schedule: Schedule) -> dict[int, frozenset[int]]:
        """The computed steps of every generated chunk of a schedule, on its own grid.

        Raises ValueError for a share that there is no plan for.
        """
        if share not in self.shares:
            known = ", ".join(f"{each:g}" for each in sorted(self.shares))
            raise ValueError(
                f"share={share:g} is not in the plan {self.name}; choose one of {known}, or calibrate it: "
                f"python -m experiments.calibrate reuse=placed shares={share:g} model=... setting=..."
            )
        kinds, found = self.shares[share], {}
        for index, window in enumerate(schedule.windows):
            positions = kinds["first_window"]
            first = window.first_chunk  # given chunks count: what they show is known to those after them
            if index and kinds["later_windows"]:
                positions, first = kinds["later_windows"], window.generated[0]
            for chunk in window.generated:
                steps = positions[min(chunk - first, len(positions) - 1)]
                times, jumps = chunk_times(schedule, chunk), schedule.jumps(chunk)
                own = steps if self.fits(times) else carried_over(steps, self.times, times, jumps)
                found[chunk] = frozenset(own) | frozenset(jumps)
        return found

    def is_of(self, schedule: Schedule, share: float) -> bool:
        """Whether it was made for a schedule's time grid and jumps, and is taken as it is."""
        made = {steps for positions in self.shares[share].values() for steps in positions}
        first = schedule.windows[0].generated[0]
        return self.fits(chunk_times(schedule, first)) and all(
            tuple(sorted(steps)) in made for steps in self.steps(share, schedule).values()
        )

    def fits(self, times: Sequence[float]) -> bool:
        """Whether a chunk's times are those that it was made on."""
        span = abs(self.times[-1] - self.times[0])
        return len(times) == len(self.times) and all(
            abs(own - other) < 1e-4 * span for own, other in zip(times, self.times, strict=True)
        )


def chunk_times(schedule: Schedule, chunk: int) -> list[float]:
    """A chunk's own times: before each of its steps, and after the last."""
    window = next(each for each in schedule.windows if chunk in each.generated)
    rows = (schedule.rows[row] for row in window.rows)
    steps = [row.step_of(chunk) for row in rows if chunk in row.chunks]
    return [*(step.t for step in steps), steps[-1].t_next]


def carried_over(steps: Steps, times: Sequence[float], other: Sequence[float], jumps: Sequence[int]) -> Steps:
    """A plan's computed steps of one chunk, on another grid: as large a part of its steps, at the same times.

    The first and the last step always compute, and so do those at which the chunk's output jumps.
    """
    num_steps = len(other) - 1
    count = min(num_steps, max(2, round(len(steps) * num_steps / (len(times) - 1))))
    rising = 1 if other[-1] > other[0] else -1
    grid = [rising * time for time in other[:-1]]
    chosen: list[int] = []
    for i in range(count):
        place = i * (len(steps) - 1) / max(1, count - 1)
        low = min(int(place), len(steps) - 2) if len(steps) > 1 else 0
        ends = [rising * times[steps[min(low + more, len(steps) - 1)]] for more in (0, 1)]
        nearest = _nearest(grid, ends[0] + (place - low) * (ends[1] - ends[0]))
        least, most = (chosen[-1] + 1 if chosen else 0), num_steps - count + i
        chosen.append(min(max(nearest, least), most))
    chosen[0], chosen[-1] = 0, num_steps - 1
    for jump in jumps:
        if jump not in chosen and len(chosen) > 2:
            inner = min(range(1, len(chosen) - 1), key=lambda i: (chosen[i] in jumps, abs(chosen[i] - jump)))
            chosen[inner] = jump
    return tuple(sorted({*chosen, *jumps}))


def _nearest(grid: Sequence[float], value: float) -> int:
    """Of a rising grid."""
    after = bisect_left(grid, value)
    around = [i for i in (after - 1, after) if 0 <= i < len(grid)]
    return min(around, key=lambda i: abs(grid[i] - value))


def _check(times: Sequence[float], shares: Mapping[float, Mapping[str, tuple[Steps, ...]]]) -> None:
    last = len(times) - 2
    if last < 1 or not shares:
        raise ValueError("it has no steps, or no shares")
    for share, kinds in shares.items():
        if not 0 < share <= 1 or not kinds["first_window"]:
            raise ValueError(f"share {share:g} is not one of 0 to 1, or says nothing of the first window")
        for steps in (*kinds["first_window"], *kinds["later_windows"]):
            if not steps or list(steps) != sorted(set(steps)) or steps[0] != 0 or steps[-1] != last:
                raise ValueError(f"share {share:g}: steps must rise from 0 to {last}, and are {list(steps)}")
