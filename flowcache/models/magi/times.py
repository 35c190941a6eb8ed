"""Every row's times and step lengths on the device at once, so that the loop never copies them from the host."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache.schedule import Row, Schedule


class RowTimes:
    """Attributes: ``clean``, float32 [1], is the time that finished chunks are encoded at.

    Args:
        schedule: of the generation.
        clean_t: that time.
        device: of the latents.
    """

    def __init__(self, schedule: Schedule, clean_t: float, device: torch.device | str) -> None:
        times, lengths = torch.zeros(2, len(schedule.rows), schedule.window_size, dtype=torch.float32)
        for row in schedule.rows:
            for i, step in enumerate(row.steps):
                times[row.index, i] = step.t
                t, t_next = torch.tensor([step.t, step.t_next], dtype=torch.float32)
                lengths[row.index, i] = t_next - t
        self._times = times.to(device)
        self._lengths = lengths.to(device)[:, :, None, None, None, None, None]
        self.clean = torch.full((1,), clean_t, dtype=torch.float32, device=device)

    def of(self, row: Row, chunk: int) -> Tensor:
        """An active chunk's time, [1]."""
        column = chunk - row.oldest.chunk
        return self._times[row.index, column : column + 1]

    def length(self, row: Row, chunk: int) -> Tensor:
        """Of an active chunk's step, [1, 1, 1, 1, 1]."""
        return self._lengths[row.index, chunk - row.oldest.chunk]
