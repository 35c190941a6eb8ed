"""Lengths of all rows' steps, on the device once, so that the loop copies nothing from the host."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache.schedule import Row, Schedule


class StepLengths:
    """Of a generation's schedule, differences of float32 times as the official sampler takes them."""

    def __init__(self, schedule: Schedule, device: torch.device | str) -> None:
        lengths = torch.zeros(len(schedule.rows), schedule.window_size, dtype=torch.float32)
        for row in schedule.rows:
            for i, step in enumerate(row.steps):
                t, t_next = torch.tensor([step.t, step.t_next], dtype=torch.float32)
                lengths[row.index, i] = t_next - t
        self._lengths = lengths.to(device)[:, :, None, None, None, None, None]

    def of(self, row: Row, chunk: int) -> Tensor:
        """Of an active chunk's step, [1, 1, 1, 1, 1]."""
        return self._lengths[row.index, chunk - row.oldest.chunk]
