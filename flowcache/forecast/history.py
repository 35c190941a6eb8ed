"""The computed outputs that forecasts look back on, chunk by chunk, and what they show for a policy's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.forecast.correction import interpolate
from flowcache.reuse.base import Figure
from flowcache.schedule import ChunkStep


@dataclass
class Gap:
    """A chunk's skipped steps since it last computed, with a forecast that corrects them.

    Attributes:
        state: whatever the model needs to take them again: what it had before the first of them.
        nbytes: that the state keeps in memory.
        steps: that were skipped since, oldest first.
    """

    state: Any
    nbytes: int
    steps: list[ChunkStep]


# The state before a gap, and for every step in it the output that it should have had.
Corrected = tuple[Any, list[tuple[ChunkStep, Tensor]]]


class OutputHistory:
    """Of one guidance branch of one generation.

    Args:
        forecast: looks back on so many outputs of each chunk as its depth says.
        figures: of ``flowcache.reuse.base.Report`` that a policy asked for; none costs nothing.
        jumps: of a chunk, the own steps at which its outputs jump: what was computed before them is forgotten once
            something was computed after (see flowcache.schedule.Schedule.jumps).
        follows: whether a chunk goes on with the one before it, for a forecast that borrows from there.

    Attributes:
        estimates: of chunks' clean latents, as their last steps left them, where the model keeps them here.
        bytes_peak: most that outputs, states before gaps, estimates and, for "input_change", latents took at once.
        forecast_from: most computed outputs that a forecast has looked back on; 0 before the first.
        corrections: gaps that were corrected.
    """

    def __init__(
        self,
        forecast: Forecast,
        figures: Sequence[Figure] = (),
        jumps: Callable[[int], Sequence[int]] = lambda _: (),
        follows: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.forecast, self.figures = forecast, tuple(figures)
        self.bytes_peak = self.forecast_from = self.corrections = 0
        self._kept, self._jumps, self._follows = max(forecast.depth, forecast.correction), jumps, follows
        self.estimates: dict[int, Tensor] = {}
        self._points: dict[int, list[Point]] = {}
        self._gaps: dict[int, Gap] = {}
        self._corrected: dict[int, Corrected] = {}
        self._inputs: dict[int, Tensor] = {}
        self._reported: dict[int, Tensor] = {}
        # What a chunk's steps took, computed or not, by their index and time; for the chunk after it.
        self._taken: dict[int, dict[tuple[int, float], Tensor]] = {}

    def update(self, step: ChunkStep, output: Tensor, latent: Tensor) -> None:
        """A chunk has computed: its output in its own step, of the latent that the network was given.

        The output is kept as it is: it must be no view of something larger, and never change. The latent is copied, and
        only where a report needs it.
        """
        chunk = step.chunk
        points = self._points.setdefault(chunk, [])
        if self.figures:
            figures = [self._figure(name, step, output, latent) for name in self.figures]
            self._reported[chunk] = torch.stack(figures)
            if "input_change" in self.figures:
                self._inputs[chunk] = latent.clone()
        if points and any(points[0].step < jump <= step.step for jump in self._jumps(chunk)):
            points.clear()
        if self.forecast.observes:
            self.forecast.observe(chunk, step.t, output, points[0] if points else None)
        points.insert(0, Point(step.t, output, step.step))
        gap = self._gaps.pop(chunk, None)
        self._corrected.pop(chunk, None)  # of a gap before, that nobody asked for: a held chunk does not move
        if gap is not None and len(points) > 1:
            known = points[: self.forecast.correction + 1]
            corrected = [(each, interpolate(each.t, known)) for each in gap.steps]
            self._corrected[chunk] = gap.state, corrected
            for each, corrected_output in corrected:
                self._take(each, corrected_output)
            self.corrections += 1
        del points[self._kept :]
        for key in [key for key in self._taken.get(chunk - 1, ()) if key[0] < step.step]:
            del self._taken[chunk - 1][key]  # nobody looks back beyond the newest output
        self._take(step, output)
        self.bytes_peak = max(self.bytes_peak, self.bytes)

    def knows(self, chunk: int) -> bool:
        """Whether the chunk has computed here."""
        return chunk in self._points

    def newest(self, chunk: int) -> Tensor:
        """The chunk's last computed output."""
        return self._points[chunk][0].output

    def predict(self, step: ChunkStep, repeat: bool = False) -> Tensor:
        """The forecast of a chunk's output in a step that it skips; with ``repeat`` its last computed one, once more.

        Raises ValueError for a chunk that has computed nothing, and for a forecast of another shape or type.
        """
        chunk = step.chunk
        points = self._points_of(chunk)
        if chunk in self._gaps:
            self._gaps[chunk].steps.append(step)
        newest = points[0].output
        if repeat:
            self._take(step, newest)
            return newest
        forecast, known = self._forecast(step, points)
        self.forecast_from = max(self.forecast_from, known)
        if (forecast.shape, forecast.dtype) != (newest.shape, newest.dtype):
            raise ValueError(
                f"{type(self.forecast).__name__} gives {list(forecast.shape)} in {forecast.dtype}; a forecast is of "
                f"the computed outputs' shape and type, {list(newest.shape)} in {newest.dtype}"
            )
        limited = self._limited(forecast, newest)
        self._take(step, limited)
        return limited

    def completed(self, step: ChunkStep, output: Tensor, computed: Tensor) -> Tensor:
        """An output of which only some was computed, before ``update`` gets it: the rest is the forecast.

        A polynomial goes on as it was through what it forecast itself. ``computed`` is a mask that goes with the
        output. Raises ValueError as ``predict`` does.
        """
        points = self._points_of(step.chunk)
        forecast, known = self._forecast(step, points)
        self.forecast_from = max(self.forecast_from, known)
        return torch.where(computed, output, self._limited(forecast, points[0].output))

    def opens_gap(self, chunk: int) -> bool:
        """Whether a chunk that skips a step now skips the first one, and its steps will be corrected."""
        return self.forecast.correction > 0 and chunk not in self._gaps

    def open_gap(self, chunk: int, state: Any, nbytes: int) -> None:
        """Keep what ``take_corrected`` will give back, before the first skipped step."""
        self._gaps[chunk] = Gap(state, nbytes, [])
        self.bytes_peak = max(self.bytes_peak, self.bytes)

    def take_corrected(self, chunk: int) -> Corrected | None:
        """For a chunk that has just computed after a gap: the state before it, and its steps with the outputs that they
        should have had, oldest first. None where there is nothing to correct, or its outputs jumped meanwhile."""
        return self._corrected.pop(chunk, None)

    def take_report(self) -> tuple[tuple[int, ...], Tensor] | None:
        """Chunks computed since the last call, and float32 [chunks, figures] on the device; None if nobody asked."""
        if not self._reported:
            return None
        reported, self._reported = self._reported, {}
        return tuple(reported), torch.stack(list(reported.values()))

    def drop(self, chunk: int) -> None:
        """Forget a chunk, which is finished; what its steps took goes with the chunk after it."""
        for kept in (self._points, self._gaps, self._corrected, self._inputs, self.estimates):
            kept.pop(chunk, None)
        self._taken.pop(chunk - 1, None)

    def clear(self) -> None:
        """Forget every chunk, for a new window."""
        for kept in (self._points, self._gaps, self._corrected, self._inputs, self.estimates, self._taken):
            kept.clear()

    @property
    def bytes(self) -> int:
        tensors = [point.output for points in self._points.values() for point in points]
        tensors += [*self._inputs.values(), *self.estimates.values()]
        tensors += [output for taken in self._taken.values() for output in taken.values()]
        each_once = {id(tensor): tensor.nbytes for tensor in tensors}
        return sum(each_once.values()) + sum(gap.nbytes for gap in self._gaps.values())

    def _take(self, step: ChunkStep, output: Tensor) -> None:
        if self.forecast.borrows:
            self._taken.setdefault(step.chunk, {})[step.step, step.t] = output
            self.bytes_peak = max(self.bytes_peak, self.bytes)

    def _points_of(self, chunk: int) -> list[Point]:
        points = self._points.get(chunk)
        if not points:
            raise ValueError(
                f"chunk {chunk} is to reuse and has computed nothing yet; a policy must compute a chunk's first step"
            )
        return points

    def _forecast(self, step: ChunkStep, points: Sequence[Point]) -> tuple[Tensor, int]:
        """As the forecast gives it, and how many outputs it looked back on."""
        known = points[: self.forecast.depth]
        borrowed = self._borrowed(step, known[0])
        if borrowed is None:
            return self.forecast.predict(step.t, known, step.step), len(known)
        return self.forecast.predict(step.t, known, step.step, borrowed=borrowed), len(known) + 1

    def _borrowed(self, step: ChunkStep, newest: Point) -> Tensor | None:
        """The change of the output of the chunk before, between the same steps; None where it held one there."""
        if not self.forecast.borrows or not self._follows(step.chunk):
            return None
        before = self._taken.get(step.chunk - 1, {})
        start, end = before.get((newest.step, newest.t)), before.get((step.step, step.t))
        return None if start is None or end is None or start is end else end - start

    def _limited(self, forecast: Tensor, newest: Tensor) -> Tensor:
        limit = self.forecast.limit
        if limit is None or forecast is newest:
            return forecast
        change = (forecast - newest).float()
        most = limit * newest.float().square().mean().sqrt()
        scale = (most / change.square().mean().sqrt()).clamp(max=1)  # NaN of 0 / 0, where nothing changes
        return newest + (change * scale.nan_to_num(1.0)).to(newest.dtype)

    def _figure(self, name: Figure, step: ChunkStep, output: Tensor, latent: Tensor) -> Tensor:
        """Float32 scalar on the device."""
        chunk = step.chunk
        points = self._points[chunk][: self.forecast.depth]
        if name == "output":
            return output.float().abs().mean()
        if name == "input_change" and chunk in self._inputs:
            return (latent.float() - self._inputs[chunk].float()).abs().mean()
        if name == "output_change" and points:
            return (output.float() - points[0].output.float()).abs().mean()
        if name == "forecast_error" and points:
            forecast = self._limited(self._forecast(step, points)[0], points[0].output)
            return (output.float() - forecast.float()).abs().mean()
        return torch.full((), float("nan"), dtype=torch.float32, device=output.device)
