"""The computed outputs that forecasts look back on, chunk by chunk, and what they show for a policy's report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.reuse.base import Figure


class OutputHistory:
    """Of one guidance branch of one generation.

    Args:
        forecast: looks back on so many outputs of each chunk as its depth says.
        figures: of ``flowcache.reuse.base.Report`` that a policy asked for; none costs nothing.

    Attributes:
        bytes_peak: most that outputs (and, for "input_change", latents) took at once.
        forecast_from: most computed outputs that a forecast has looked back on; 0 before the first.
    """

    def __init__(self, forecast: Forecast, figures: Sequence[Figure] = ()) -> None:
        self.forecast, self.figures = forecast, tuple(figures)
        self.bytes_peak = self.forecast_from = 0
        self._points: dict[int, list[Point]] = {}
        self._inputs: dict[int, Tensor] = {}
        self._reported: dict[int, Tensor] = {}

    def update(self, chunk: int, t: float, output: Tensor, latent: Tensor) -> None:
        """A chunk has computed: its output at its own time t, of the latent that the network was given.

        The output is kept as it is: it must be no view of something larger, and never change. The latent is copied, and
        only where a report needs it.
        """
        points = self._points.setdefault(chunk, [])
        if self.figures:
            self._reported[chunk] = torch.stack([self._figure(name, chunk, t, output, latent) for name in self.figures])
            if "input_change" in self.figures:
                self._inputs[chunk] = latent.clone()
        points.insert(0, Point(t, output))
        del points[self.forecast.depth :]
        self.bytes_peak = max(self.bytes_peak, self.bytes)

    def newest(self, chunk: int) -> Tensor:
        """The chunk's last computed output."""
        return self._points[chunk][0].output

    def predict(self, chunk: int, t: float) -> Tensor:
        """The forecast of a chunk's output at its own time t.

        Raises ValueError for a chunk that has computed nothing, and for a forecast of another shape or type.
        """
        points = self._points.get(chunk)
        if not points:
            raise ValueError(
                f"chunk {chunk} is to reuse and has computed nothing yet; a policy must compute a chunk's first step"
            )
        self.forecast_from = max(self.forecast_from, len(points))
        forecast, newest = self.forecast.predict(t, points), points[0].output
        if (forecast.shape, forecast.dtype) != (newest.shape, newest.dtype):
            raise ValueError(
                f"{type(self.forecast).__name__} gives {list(forecast.shape)} in {forecast.dtype}; a forecast is of "
                f"the computed outputs' shape and type, {list(newest.shape)} in {newest.dtype}"
            )
        return forecast

    def take_report(self) -> tuple[tuple[int, ...], Tensor] | None:
        """Chunks computed since the last call, and float32 [chunks, figures] on the device; None if nobody asked."""
        if not self._reported:
            return None
        reported, self._reported = self._reported, {}
        return tuple(reported), torch.stack(list(reported.values()))

    def drop(self, chunk: int) -> None:
        """Forget a chunk, which is finished."""
        self._points.pop(chunk, None)
        self._inputs.pop(chunk, None)

    def clear(self) -> None:
        """Forget every chunk, for a new window."""
        self._points.clear()
        self._inputs.clear()

    @property
    def bytes(self) -> int:
        outputs = sum(point.output.nbytes for points in self._points.values() for point in points)
        return outputs + sum(latent.nbytes for latent in self._inputs.values())

    def _figure(self, name: Figure, chunk: int, t: float, output: Tensor, latent: Tensor) -> Tensor:
        """Float32 scalar on the device."""
        points = self._points[chunk]
        if name == "output":
            return output.float().abs().mean()
        if name == "input_change" and chunk in self._inputs:
            return (latent.float() - self._inputs[chunk].float()).abs().mean()
        if name == "output_change" and points:
            return (output.float() - points[0].output.float()).abs().mean()
        if name == "forecast_error" and points:
            return (output.float() - self.forecast.predict(t, points).float()).abs().mean()
        return torch.full((), float("nan"), dtype=torch.float32, device=output.device)
