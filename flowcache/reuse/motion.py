"""How much every token of a chunk differs from the same place one frame before: where a video moves."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from flowcache.reuse.distance import check_numbers
from flowcache.schedule import Row, Schedule


class FrameSource(Protocol):
    schedule: Schedule

    def frames(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        """What stands at the tokens of neighbouring active chunks after a row: [G, N*f, P, D], of G guidance branches
        (1 where they share it), N chunks of f frames each, and P tokens a frame."""
        ...


class MotionMeter:
    """Measures a row's chunks once the row is done. Numbers stay on the device.

    A chunk's first frame is compared with the last one of the chunk before, as it is then, or as it was once finished.
    There is none before the first chunk, nor before the first that a window does not begin with, for given chunks take
    no steps.

    Args:
        source: gives the frames, one generation of a model.
        kind: "latent", of which motion is the mean absolute difference, or "block_output" (what the network's blocks
            put out), of which it is that over the mean absolute value one frame before.
        across_windows: compare with what stood at the chunk's place in the window before, where nothing stands in its
            own yet; as the published MotionCache does on SkyReels-V2.
    """

    def __init__(self, source: FrameSource, kind: str, across_windows: bool = False) -> None:
        self.source, self.kind, self.across_windows = source, kind, across_windows
        self._finished: dict[int, Tensor] = {}  # last frames [G, 1, P, D], by the chunk's place in its window
        self._window = 0

    def measure(self, row: Row) -> Tensor:
        """Motion of a row's chunks, float32 [N, G, f, P]; NaN in a first frame with nothing to compare with.

        Raises ValueError on device "meta", where there are no numbers.
        """
        frames = self.source.frames(self.kind, row.chunks).float()
        check_numbers(frames, self.kind)
        if row.window != self._window and not self.across_windows:
            self._finished.clear()
        self._window = row.window
        origin, num_frames = self.source.schedule.windows[row.window].first_chunk, frames.shape[1] // len(row.chunks)
        before = self._finished.get(row.chunks[0] - origin - 1)
        if before is None:
            before = torch.full_like(frames[:, :1], torch.nan)
        for chunk in row.finished:
            last = (row.chunks.index(chunk) + 1) * num_frames
            self._finished[chunk - origin] = frames[:, last - 1 : last].clone()
        frames = torch.cat([before, frames], dim=1)
        motion = (frames[:, 1:] - frames[:, :-1]).abs_().mean(-1)
        if self.kind != "latent":
            motion /= frames[:, :-1].abs().mean(-1).add_(1e-8)
        return motion.unflatten(1, (-1, num_frames)).transpose(0, 1)
