"""SnapKV (arXiv 2404.14469): keys that a window of queries attends to, with their neighbours.

The score is the one of NVIDIA/kvpress (SnapKVPress); FasterDecoding/SnapKV has one set for every query head, here the
query heads that share a key-value head decide by their mean. The copy in R-KV takes the highest logit of a group
instead: that is ``Joint(mix_lambda=1)``. All three look at the newest tokens, which on video are a corner of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByAttention, key_mask
from flowcache.kv.select.scores import attention_received, check_pool
from flowcache.options import check_choice

Pooling = Literal["mean", "max"]


@dataclass(kw_only=True)
class SnapKv(ByAttention):
    """Attributes: attention is pooled over ``pool_kernel`` neighbouring keys (odd; 1 pools nothing) by their mean, as
    published by default, or by their "max", which leaves ties."""

    window: int | None = 32
    window_over: Literal["frame", "chunk"] = "frame"
    pool_kernel: int = 5
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pool(self.pool_kernel)
        check_choice("pooling", self.pooling, ("mean", "max"))

    def scores(self, entries: Entries) -> Tensor:
        received = attention_received(entries.query, entries.key) / entries.query.shape[-2]
        return pooled(received, self.pool_kernel, self.pooling).mean(-2) + key_mask(entries.key)


def pooled(score: Tensor, kernel: int, pooling: Pooling) -> Tensor:
    """Over neighbours along the last dimension of [..., L]; keys beyond the ends count as 0 in a mean."""
    pool = F.avg_pool1d if pooling == "mean" else F.max_pool1d
    rows = score.flatten(0, -2)
    return pool(rows, kernel, stride=1, padding=kernel // 2).unflatten(0, score.shape[:-1])
