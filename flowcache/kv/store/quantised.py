"""Stores that hold finished chunks in codes, and correct the logits of what is read from them.

Shape letters: B batch, G key-value heads, E channels a head, T slots of a block (a chunk's, or a frame's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.kv.store.settling import Settling
from flowcache.options import check_counts, check_switches


@dataclass(kw_only=True)
class Quantised(Settling):
    """Finished chunks are settled as codes, less precise than what was written.

    Attributes:
        newest_chunks: finished chunks, beside those being denoised, that stay in full precision until newer ones are
            finished.
        sink_chunks: first chunks of a window that always do, unless a budget makes all finished ones one.
        correction: take off the logits of settled keys what rounding adds to them in the mean: of noise e in a key,
            exp(logit) grows by exp(var(q.e) / 2), so that such keys would draw attention from exact ones
            (arXiv 2605.26266, as we read its abstract).
    """

    lossless: ClassVar[bool] = False
    newest_chunks: int = 0
    sink_chunks: int = 1
    correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(0, newest_chunks=self.newest_chunks, sink_chunks=self.sink_chunks)
        check_switches(correction=self.correction)

    def logit_noise(self, parts: Sequence[Tensor], energy: Tensor) -> Tensor | float:
        """Variance of every key's logit, [B, G, T], by the queries' ``energy`` (see ``excess``)."""
        return 0.0

    @property
    def corrects(self) -> bool:
        return self.correction and type(self).logit_noise is not Quantised.logit_noise

    def excess(self, layer: int, slots: slice, energy: Tensor) -> Tensor | None:
        settled = [(start, segment) for start, segment in self._within(layer, slots) if segment.settled]
        if not settled or not self.corrects:
            return None
        excess = energy.new_zeros((*energy.shape[:2], slots.stop - slots.start))
        for start, (length, place, _) in settled:
            noise = self.logit_noise([part[layer, place] for part in self._codes[0]], energy)
            first = start - slots.start
            excess[:, :, first : first + length] = noise[:, :, :length] / 2
        return excess
