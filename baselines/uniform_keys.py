"""Keys spread evenly over all of the video so far, whatever they hold: the honest trivial baseline, which papers omit.

Unit i of the video ranks by the fractional part of i times the golden ratio. The units below any limit are then evenly
spread (gaps of at most three sizes), and a lower limit keeps some of them: what stays after many compressions is what
one compression of the whole video would keep. Choosing every second slot again and again would thin out the past.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByScore

STEPS = 2**24  # of the fractional part: as many whole numbers as float32 tells apart
GOLDEN_STEP = 10368889  # STEPS over the golden ratio, odd, so that no two of STEPS units rank alike


@dataclass(kw_only=True)
class UniformKeys(ByScore):
    """Attributes: see ByScore."""

    def scores(self, entries: Entries) -> Tensor:
        units = entries.position.long() // self.unit_tokens(entries.tokens_per_frame, entries.tokens_per_chunk)
        return -(units * GOLDEN_STEP % STEPS).float()
