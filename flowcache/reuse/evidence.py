"""What a policy sees of a row, brought to the host in one read: this row's distances, and the last one's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcache.parallel import ALONE, Parallel
from flowcache.reuse.base import Figure, Report
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.reuse.fingerprint import FingerprintMeter
from flowcache.reuse.motion import MotionMeter
from flowcache.schedule import Row


class EvidenceReader:
    """At most one read by the host a row, and none for a policy that looks at nothing.

    Args:
        meter: of the policy's distance; None if it has none.
        figures: the policy's ``report``.
        motion: meter of the frame differences that the policy asks for; None if it does not.
        parallel: of one video in several processes all see what the first one sees, and so decide alike: their own
            may differ by a digit, on cards that are not the same, or be of another guidance branch.
    """

    def __init__(
        self,
        meter: DistanceMeter | FingerprintMeter | None,
        figures: Sequence[Figure] = (),
        motion: MotionMeter | None = None,
        parallel: Parallel = ALONE,
    ) -> None:
        self.meter, self.figures, self.motion, self.parallel = meter, tuple(figures), motion, parallel
        # Of the last row, on the device: the chunks that computed with their figures, and the motion of all.
        self._row: Row | None = None
        self._chunks: Sequence[int] = ()
        self._figures: Tensor | None = None
        self._motion: Tensor | None = None

    def keep(self, row: Row, chunks: Sequence[int], numbers: Tensor) -> None:
        """The report of a row that has computed: float32 [chunks, figures], on the device until the next ``read``."""
        self._row, self._chunks, self._figures = row, chunks, numbers

    def done(self, row: Row) -> None:
        """A row's steps have been taken."""
        if self.motion is not None:
            self._row, self._motion = row, self.motion.measure(row)

    def decided(self, row: Row, computed: Sequence[int]) -> None:
        """Which of a row's chunks compute."""
        if self.meter is not None:
            self.meter.decided(row, computed)

    def read(self, row: Row) -> tuple[Mapping[int, ChunkDistance], tuple[Row, Mapping[int, Report]] | None]:
        """Distances of a row's chunks, and the report kept since the last read with its row, if there is one."""
        measured, distances = ([], None) if self.meter is None else self.meter.measure(row)
        distances, figures, motion = _on_host(self.parallel, distances, self._figures, self._motion)
        before, computed = self._row, self._chunks
        self._row = self._figures = self._motion = None
        found = {} if distances is None else dict(zip(measured, self._distances(distances), strict=True))
        if before is None:
            return found, None
        shown: dict[int, dict[str, Any]] = {}
        if figures is not None:
            for chunk, numbers in zip(computed, figures.tolist(), strict=True):
                shown[chunk] = dict(zip(self.figures, numbers, strict=True))
        if motion is not None:
            for chunk, own in zip(before.chunks, motion, strict=True):
                shown.setdefault(chunk, {})["motion"] = own
        return found, (before, {chunk: Report(**own) for chunk, own in shown.items()})

    def _distances(self, numbers: Tensor) -> Iterator[ChunkDistance]:
        if not (isinstance(self.meter, DistanceMeter) and self.meter.tokens):
            yield from (ChunkDistance(*own) for own in numbers.tolist())
            return
        for own, tokens in zip(numbers[:, :2].tolist(), numbers[:, 2:], strict=True):
            yield ChunkDistance(*own, tokens=tokens)


def _on_host(parallel: Parallel, *parts: Tensor | None) -> list[Tensor | None]:
    """The same in one read, the first process's in all; what is there already as it is."""
    elsewhere = [part is not None and (parallel.world > 1 or not part.is_cpu) for part in parts]
    known = [part.flatten() for part, fetched in zip(parts, elsewhere, strict=True) if part is not None and fetched]
    if not known:
        return list(parts)
    together = known[0] if len(known) == 1 else torch.cat(known)
    if parallel.world > 1:
        parallel.broadcast(together, 0)
    numbers = iter(together.cpu().split([len(part) for part in known]))
    return [
        next(numbers).view(part.shape) if part is not None and fetched else part
        for part, fetched in zip(parts, elsewhere, strict=True)
    ]
