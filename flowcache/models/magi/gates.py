"""The gates of every time that a generation meets, worked out once: they depend on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcache.models.magi.network import MagiDit, step_size_number
from flowcache.schedule import Schedule


class GateTable:
    """Layers' gates by a row's interval and a time.

    Args:
        dit: the network.
        schedule: its rows' steps are what is asked for, and ``clean_time``.
        with_dropped: for passes without a caption, too.

    Attributes:
        num_times: that were worked out.
    """

    @torch.no_grad()
    def __init__(
        self, dit: MagiDit, schedule: Schedule, clean_time: float, with_dropped: bool, device: torch.device
    ) -> None:
        times = {row.interval: {clean_time} for row in schedule.rows}
        for row in schedule.rows:
            times[row.interval] |= {step.t for step in row.steps}
        keys = [(interval, t) for interval, own in times.items() for t in sorted(own)]
        self._columns = {key: column for column, key in enumerate(keys)}
        self._tables: dict[bool, Tensor] = {}  # by whether the caption is dropped, each [layers, 1, times, 2 D]
        for dropped in (False, True) if with_dropped else (False,):
            parts = []
            for interval, own in times.items():
                of = torch.tensor([sorted(own)], dtype=torch.float32, device=device)
                flags = torch.full_like(of, dropped, dtype=torch.bool)
                parts.append(dit.gates(of, flags, step_size_number(schedule.num_steps, interval)))
            self._tables[dropped] = torch.cat(parts, dim=2)
        self.num_times = len(keys) * len(self._tables)

    def of(self, interval: float, times: Sequence[float], dropped: bool = False) -> Tensor:
        """Gates of a forward's members, by their times: [layers, 1, N, 2 D]."""
        columns, table = [self._columns[interval, t] for t in times], self._tables[dropped]
        return joined([table[:, :, column : column + 1] for column in columns], dim=2)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors one after another; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=dim)
