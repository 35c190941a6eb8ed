"""Random keys: what any selector must beat, and no paper shows.

Each unit of the video draws its rank once, by a hash of its number, the layer and the seed, so that after any number of
compressions every unit of the video so far is as likely to be there as any other, on every device the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByScore
from flowcache.options import check_counts

WORD = 2**32 - 1


@dataclass(kw_only=True)
class RandomKeys(ByScore):
    """Attributes: ``seed`` draws others; the same keys in all heads, others in every layer."""

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(0, seed=self.seed)

    def scores(self, entries: Entries) -> Tensor:
        units = entries.position.long() // self.unit_tokens(entries.tokens_per_frame, entries.tokens_per_chunk)
        drawn = _mixed(units + _mixed(entries.layer + _mixed(self.seed)))
        return (drawn >> 8).float()  # as many bits as float32 tells apart


def _mixed(x: Tensor | int) -> Tensor | int:
    """A 32-bit hash (lowbias32 of github.com/skeeto/hash-prospector), in whole numbers of 64 bits."""
    x = x & WORD
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16
