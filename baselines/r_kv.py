"""R-KV (arXiv 2505.24133): importance to a window of queries against redundancy among the keys (Zefan-Cai/R-KV: R1KV).

FlowCache's joint score comes from it. They differ in what repeats: here each key spares the newest key that is like it,
so that of a group of near duplicates the newest stays. That takes the cosines of all pairs, a block of rows at a time,
where FlowCache's mean needs none.

In the published code a key that is like no other spares the video's first key, whatever that is; here it spares none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByAttention, key_mask
from flowcache.kv.select.scores import check_pool, importance
from flowcache.options import check_share

BLOCK_BYTES = 16 * 2**20


@dataclass(kw_only=True)
class RKv(ByAttention):
    """Attributes.

    mix_lambda: weight of importance against redundancy, 0 to 1; 0.07 in the published code, 0.1 in the paper.
    pool_kernel: width of the max-pool over neighbouring keys' importance, odd.
    threshold: keys of a higher cosine are alike.
    """

    window: int | None = 32
    window_over: Literal["frame", "chunk"] = "frame"
    mix_lambda: float = 0.07
    pool_kernel: int = 7
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(mix_lambda=self.mix_lambda, threshold=self.threshold)
        check_pool(self.pool_kernel)

    def scores(self, entries: Entries) -> Tensor:
        score = self.mix_lambda * importance(entries.query, entries.key, self.pool_kernel)
        return score - (1 - self.mix_lambda) * self.redundancy(entries.key) + key_mask(entries.key)

    def redundancy(self, key: Tensor, block_bytes: int = BLOCK_BYTES) -> Tensor:
        """Of keys [..., G, L, E]: softmax over the keys of the mean cosine of all others to each, less those that spare
        it; float32 [..., G, L]. Takes about ``block_bytes`` beside a head's keys in float32."""
        length = key.shape[-2]
        rows_a_block = max(1, block_bytes // (12 * length))
        slots = torch.arange(length, dtype=torch.int32, device=key.device)
        sums = []
        for head in key.flatten(0, -3):
            unit = F.normalize(head.float().nan_to_num(0.0, 0.0, 0.0), dim=-1)
            own = torch.zeros(length, device=key.device)
            for start in range(0, length, rows_a_block):
                cosines = unit[start : start + rows_a_block] @ unit.mT
                cosines.diagonal(start).zero_()
                alike = cosines > self.threshold
                newest = (alike * slots).amax(-1, keepdim=True).long()  # 0 where none is, which changes nothing
                spared = cosines.gather(-1, newest).masked_fill(alike.any(-1, keepdim=True), 0.0)
                cosines.scatter_(-1, newest, spared)
                own += cosines.sum(0)
            sums.append(own)
        return (torch.stack(sums).unflatten(0, key.shape[:-2]) / length).softmax(-1)

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        attention = 2 * num_queries * length * num_heads * channels
        return attention + 2 * num_groups * length**2 * channels
