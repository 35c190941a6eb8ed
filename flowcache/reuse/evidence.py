"""What a policy sees of a row, brought to the host in one read: this row's distances, and the last one's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from flowcache.reuse.base import Figure, Report
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.reuse.fingerprint import FingerprintMeter
from flowcache.schedule import Row


class EvidenceReader:
    """At most one read by the host a row, and none for a policy that looks at nothing.

    Args:
        meter: of the policy's distance; None if it has none.
        figures: the policy's ``report``.
    """

    def __init__(self, meter: DistanceMeter | FingerprintMeter | None, figures: Sequence[Figure] = ()) -> None:
        self.meter, self.figures = meter, tuple(figures)
        self._reported: tuple[Row, Sequence[int], Tensor] | None = None

    def keep(self, row: Row, chunks: Sequence[int], numbers: Tensor) -> None:
        """The report of a row that has computed: float32 [chunks, figures], on the device until the next ``read``."""
        self._reported = row, chunks, numbers

    def decided(self, row: Row, computed: Sequence[int]) -> None:
        """Which of a row's chunks compute."""
        if self.meter is not None:
            self.meter.decided(row, computed)

    def read(self, row: Row) -> tuple[Mapping[int, ChunkDistance], tuple[Row, Mapping[int, Report]] | None]:
        """Distances of a row's chunks, and the report kept since the last read with its row, if there is one."""
        measured, distances = ([], None) if self.meter is None else self.meter.measure(row)
        reported, self._reported = self._reported, None
        parts = [part.flatten() for part in (distances, reported and reported[2]) if part is not None]
        if not parts:
            return {}, None
        numbers = iter((parts[0] if len(parts) == 1 else torch.cat(parts)).tolist())
        width = 0 if distances is None else distances.shape[1]
        found = {chunk: ChunkDistance(*islice(numbers, width)) for chunk in measured}
        if reported is None:
            return found, None
        row_before, chunks, _ = reported
        reports = {chunk: Report(**{name: next(numbers) for name in self.figures}) for chunk in chunks}
        return found, (row_before, reports)
