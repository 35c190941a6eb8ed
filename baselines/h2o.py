"""H2O (arXiv 2306.14048): the keys that got most attention in all of the video so far, and the newest ones.

Attention is summed over rows that compute, from the first after a key is final, and the sum goes with a kept key
(FMInference/H2O: H2OKVCache_LayerWise, over every row, which is look_every=1). The copy that circulates in R-KV, and in
FlowCache's and MotionCache's repositories after it, is none: it looks at the last query alone and adds nothing up.

Published is one set for every query head; here query heads that share a key-value head decide by their mean. A row has
thousands of queries, of which a sample spread over the newest chunk stands for all: the sum's order, but for noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import Observing, key_mask
from flowcache.kv.select.scores import attention_received


@dataclass(kw_only=True)
class H2o(Observing):
    """Attributes: see ByScore, ByAttention and Observing; as published, half of the budget goes to the newest keys."""

    adds_up: ClassVar[bool] = True
    recent_share: float = 0.5
    window: int | None = 256

    def observe(self, entries: Entries) -> Tensor:
        return attention_received(entries.query, entries.key).mean(-2)

    def scores(self, entries: Entries) -> Tensor:
        return entries.observed + key_mask(entries.key)
