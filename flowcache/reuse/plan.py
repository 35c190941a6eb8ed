"""Plans: which of its own steps a chunk computes, by where it stands in its window; made by calibrating on a model.

A plan is a small JSON file, written by ``python -m experiments.calibrate reuse=placed``. Times, never step numbers,
carry it over to other step counts and grids.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowcache.schedule import Schedule

Steps = tuple[int, ...]
_KINDS = ("first_window", "later_windows")


@dataclass(frozen=True)
class Plan:
    """What a file holds.

    Attributes:
        name: of the file, without its folder and ending.
        sha256: first 16 digits of its content's.
        times: of the grid that it was made on, one a step and the end.
        shares: by share of vanilla's FLOPs, and there by "first_window" and "later_windows", the computed steps of each
            generated chunk by its position; chunks further on take the last position's.
        provenance: what it was made of: model, setting, weights, prompts, seed, fit ...
    """

    name: str
    sha256: str
    times: tuple[float, ...]
    shares: Mapping[float, Mapping[str, tuple[Steps, ...]]]
    provenance: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Raises ValueError for a file that is not there, or is no plan."""
        path = Path(path)
        try:
            text = path.read_bytes()
            data = json.loads(text)
            times = tuple(map(float, data.pop("times")))
            shares = {
                float(share): {kind: tuple(map(tuple, steps[kind])) for kind in _KINDS}
                for share, steps in data.pop("shares").items()
            }
            _check(times, shares)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"plan={str(path)!r} cannot be read as a plan ({error}); give a file that python -m "
                "experiments.calibrate reuse=placed wrote"
            ) from error
        return cls(path.stem, hashlib.sha256(text).hexdigest()[:16], times, shares, data)

    def described(self) -> dict[str, str]:
        """What tells it from others, wherever it lies."""
        return {"plan": self.name, "sha256": self.sha256}

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
