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
        """What stands at the tokens of active chunks after a row, frame by frame: [N, G, f, P, D], of N chunks, G
        guidance branches (1 where they share it), f frames and P tokens a frame."""
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
        self._finished: dict[int, Tensor] = {}  # last frames [G, P, D], by the chunk's place in its window
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
        origin = self.source.schedule.windows[row.window].first_chunk
        before = torch.empty_like(frames)
        before[:, :, 1:] = frames[:, :, :-1]
        before[1:, :, 0] = frames[:-1, :, -1]
        before[0, :, 0] = self._finished.get(row.chunks[0] - origin - 1, torch.nan)
        for chunk in row.finished:
            self._finished[chunk - origin] = frames[row.chunks.index(chunk), :, -1].clone()
        change = frames.sub_(before).abs_().mean(-1)
        return change if self.kind == "latent" else change / (before.abs_().mean(-1) + 1e-8)
