"""Which steps to compute: the cheapest path over a chunk's steps, by the error of what is guessed between them.

A gap (a', a, b) is steps a+1 .. b-1 skipped between computed steps a and b, after a computed step a'. Its error is that
of the latent at b: the sum over its steps of their weight times the guess less vanilla's output. A guess is linear in
the outputs, so that an error's mean square is c G c, with c the guess's coefficients and G the outputs' Gram matrix:
one small matrix a chunk holds all that is needed, and no forward is run to judge a path.

A step has a price, and a row that computes anything has one of its own, which its chunks share: a forward of one chunk
takes longer than a chunk's part of a forward of several. So computed steps gather in common rows where they may.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy import ndarray

from flowcache.forecast.base import Forecast, Point
from flowcache.forecast.correction import interpolation_weights
from flowcache.schedule import Schedule

LAST_PLACE = 2  # in a window from which on chunks are alike, but for their neighbours
NO_STEP = -1  # a' where nothing that was computed before counts: at a chunk's beginning, and after a jump
BISECTIONS = 40
ROUNDS = 3  # in which every position's path is found again, knowing the others'
SHARE_TOLERANCE = 0.002


@dataclass(frozen=True)
class Position:
    """Chunks that stand alike: in a first or a later window, with the same neighbours finishing at the same steps.

    Attributes:
        window: 0 for the first window, 1 for later ones.
        index: place of its first chunk among the window's generated chunks.
        times: [N + 1], of its steps and the end.
        jumps: own steps at which outputs jump.
        chunks: of the schedule.
        rows: for each of the chunks the indices of the rows of its steps.
    """

    window: int
    index: int
    times: tuple[float, ...]
    jumps: tuple[int, ...]
    chunks: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Rule:
    """What an error is taken to do to the video; chosen by real runs (see calibrate).

    Attributes:
        length_power: a step's weight is its length to this power: the later an error, the less becomes of it, while
            steps grow longer.
        forecast_weight: of the squared error of the forecast, which the network's next input has, beside the squared
            error after the correction, which stays.
        first_ratio: weight of a window's first chunk's squared errors in that of its third and later ones, which follow
            from it; the second has its square root.
        row_cost: of a row that computes anything, in steps of a chunk. Embedded MAGI-1's forward takes 6.0 ms of one
            chunk and 5.1 ms a chunk of five, which makes 0.23 (two cores, AMD EPYC, medians of 3 runs in turn).
    """

    length_power: float = 0.5
    forecast_weight: float = 0.2
    first_ratio: float = 16.0
    row_cost: float = 0.25

    def position_weight(self, position: Position) -> float:
        if position.window:
            return 1.0
        return max(1.0, self.first_ratio ** (1 - position.index / LAST_PLACE))


def positions(schedule: Schedule, times: Mapping[int, Sequence[float]]) -> list[Position]:
    """Of all generated chunks, in the order of the first of each. ``times`` by chunk."""
    rows: dict[int, list[int]] = {}
    for row in schedule.rows:
        for step in row.steps:
            rows.setdefault(step.chunk, []).append(row.index)
    found: dict[tuple, list[int]] = {}
    first: dict[tuple, int] = {}
    for index, window in enumerate(schedule.windows):
        for place, chunk in enumerate(window.generated):
            key = (min(index, 1), min(place, LAST_PLACE), tuple(sorted(schedule.events(chunk).items())))
            found.setdefault(key, []).append(chunk)
            first.setdefault(key, place)
    return [
        Position(
            key[0],
            first[key],
            tuple(times[chunks[0]]),
            schedule.jumps(chunks[0]),
            tuple(chunks),
            tuple(tuple(rows[chunk]) for chunk in chunks),
        )
        for key, chunks in found.items()
    ]


class Gaps:
    """All gaps of a position, and what is guessed in them.

    Args:
        position: of the chunks.
        forecast: what skipped steps take, and how they are corrected. It must be linear in the outputs.
        length_power: see Rule.
        longest: steps from one computed step to the next, at most.
    """

    def __init__(self, position: Position, forecast: Forecast, length_power: float, longest: int) -> None:
        self.num_steps = len(position.times) - 1
        self.jumps = position.jumps
        self._times, self._forecast = position.times[:-1], forecast
        lengths = np.abs(np.diff(np.asarray(position.times)))
        self._weights = (lengths / lengths.mean()) ** length_power
        self._guesses = cache(self._guess)
        self.keys = self._all(longest)
        errors = [self._coefficients(*key) for key in self.keys]
        self._forecasts, self._corrected = (np.array(each) for each in zip(*errors, strict=True))

    def errors(self, gram: ndarray, forecast_weight: float) -> ndarray:
        """Of every gap on one chunk, root of the weighted mean square, [gaps]. ``gram`` [N, N] of its outputs, float64,
        over their number of elements."""
        squares = [np.einsum("gi,gi->g", c @ gram, c) for c in (self._corrected, self._forecasts)]
        return np.sqrt(np.maximum(squares[0], 0) + forecast_weight * np.maximum(squares[1], 0))

    def path(self, costs: ndarray, prices: Sequence[float]) -> list[int]:
        """Computed steps, from the first to the last, whose gaps' ``costs`` [gaps] and own ``prices`` [N] add up to the
        least. Ties go to the path that computes less."""
        best: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {(NO_STEP, 0): (prices[0], None)}
        for (before, start, end), cost in zip(self.keys, costs.tolist(), strict=True):  # starts rise
            if (state := best.get((before, start))) is None:
                continue
            reached = (NO_STEP if self._jumps_in(start, end) else start, end)
            total = state[0] + cost + prices[end]
            if reached not in best or total < best[reached][0]:
                best[reached] = total, (before, start)
        ends = [(total, state) for state, (total, _) in best.items() if state[1] == self.num_steps - 1]
        state: tuple[int, int] | None = min(ends)[1]
        steps = []
        while state is not None:
            steps.append(state[1])
            state = best[state][1]
        return steps[::-1]

    def _jumps_in(self, start: int, end: int) -> bool:
        return any(start < jump <= end for jump in self.jumps)

    def _all(self, longest: int) -> list[tuple[int, int, int]]:
        keys = []
        for start in range(self.num_steps - 1):
            befores = [b for b in range(max(0, start - longest), start) if not self._jumps_in(b, start)]
            near = range(max(0, start - longest), start)
            if start == 0 or any(self._jumps_in(b, start) for b in near):
                befores = [NO_STEP, *befores]
            for end in range(start + 1, min(start + longest, self.num_steps - 1) + 1):
                if not any(start < jump < end for jump in self.jumps):  # a jump is never skipped
                    keys += [(before, start, end) for before in befores]
        return keys

    def _coefficients(self, before: int, start: int, end: int) -> tuple[ndarray, ndarray]:
        """Of the outputs [N], in the forecast's error at the gap's end and in what is left of it when corrected."""
        forecast, corrected = np.zeros((2, self.num_steps))
        given = [step for step in (end, start, before) if step != NO_STEP][: self._forecast.correction + 1]
        known = list({self._times[step]: step for step in reversed(given)}.values())[::-1]  # of one time the newer
        corrects = self._forecast.correction > 0 and not self._jumps_in(start, end)
        for step in range(start + 1, end):
            error = self._guesses(before, start, step)
            forecast += self._weights[step] * error
            if corrects:
                error = np.zeros(self.num_steps)
                error[known] = interpolation_weights(self._times[step], [self._times[k] for k in known])
                error[step] -= 1
            corrected += self._weights[step] * error
        return forecast, corrected

    def _guess(self, before: int, start: int, step: int) -> ndarray:
        """Of the outputs [N], in the forecast of a step less its output: the forecast of unit vectors."""
        known = [each for each in (start, before) if each != NO_STEP][: self._forecast.depth]
        units = torch.eye(len(known), dtype=torch.float64)
        points = [Point(self._times[k], unit, k) for k, unit in zip(known, units, strict=True)]
        error = np.zeros(self.num_steps)
        error[known] = self._forecast.predict(self._times[step], points, step).numpy()
        error[step] -= 1
        return error


def gap_costs(gaps: Gaps, grams: Sequence[ndarray], rule: Rule, weight: float) -> ndarray:
    """Of a position's gaps, over its chunks' Gram matrices: the square of the mean root, [gaps]. Roots are averaged so
    that no one prompt, of a video that could have gone either way, decides."""
    roots = np.mean([gaps.errors(gram, rule.forecast_weight) for gram in grams], axis=0)
    return weight * roots**2


@dataclass(frozen=True)
class Compute:
    """FLOPs of a vanilla run: of each chunk's steps, by chunk [N], and all that is never skipped."""

    steps: Mapping[int, ndarray]
    fixed: float

    def share(self, computed: Mapping[int, Sequence[int]]) -> float:
        """Of vanilla's FLOPs, where every chunk computes these of its steps."""
        total = self.fixed + sum(float(own.sum()) for own in self.steps.values())
        return (self.fixed + sum(float(self.steps[c][list(own)].sum()) for c, own in computed.items())) / total


def paths(
    price: float, row_cost: float, found: Sequence[Position], gaps: Sequence[Gaps], costs: Sequence[ndarray]
) -> list[list[int]]:
    """Computed steps of every position at a price of a chunk's step. Each is the best there is while the others stay;
    of all together they need not be."""
    chosen: list[list[int]] = [[] for _ in found]
    for _ in range(ROUNDS):
        before = [list(own) for own in chosen]
        for index, (each, cost) in enumerate(zip(gaps, costs, strict=True)):
            alone = 1 - _company(found, chosen, index)
            chosen[index] = each.path(cost, (price * (1 + row_cost * alone)).tolist())
        if chosen == before:
            break
    return chosen


def _company(found: Sequence[Position], chosen: Sequence[Sequence[int]], index: int) -> ndarray:
    """Of a position's steps: for what share of its chunks another chunk computes in the step's row, [N]."""
    computed = Counter(
        rows[step] for position, own in zip(found, chosen, strict=True) for rows in position.rows for step in own
    )
    rows = np.array(found[index].rows)
    others = np.vectorize(computed.get, otypes=[int])(rows, 0)
    others[:, list(chosen[index])] -= 1
    return (others > 0).mean(axis=0)


def place(
    share: float,
    found: Sequence[Position],
    gaps: Sequence[Gaps],
    costs: Sequence[ndarray],
    compute: Compute,
    row_cost: float,
) -> tuple[list[list[int]], float]:
    """Computed steps of every position, at one price of a step for all, and the share of FLOPs that they leave: the
    nearest to the wanted one that any price gives."""
    low, high = -60.0, 30.0  # logarithms of a price
    best: tuple[float, list[list[int]], float] | None = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        chosen = paths(math.exp(middle), row_cost, found, gaps, costs)
        left = compute.share({c: p for position, p in zip(found, chosen, strict=True) for c in position.chunks})
        if best is None or abs(left - share) < best[0]:
            best = abs(left - share), chosen, left
        if best[0] < SHARE_TOLERANCE:
            break
        low, high = (middle, high) if left > share else (low, middle)
    return best[1], best[2]
