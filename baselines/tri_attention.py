"""TriAttention (arXiv 2604.04921): keys that queries to come can be expected to attend to; it asks none of them.

Before their rotation a head's queries are much the same from step to step. So their mean, turned to a time to come,
says how a key will be met: for every pair of channels f, the mean query m_f, the key k_f and the time dt between them,

    |m_f| |k_f| cos(w_f dt + phi_f)  +  (mean |q_f| - |m_f|) |k_f|

summed over the pairs, its mean over times 1, 2, 4 ... frames after the newest key, at the key's own place in the frame
(WeianMao/triattention: longlive). There the statistics come from other videos, in a file; here from the queries of this
one so far, a sample in every few rows, so that they fit the weights, the prompt and the size by themselves. Query heads
that share a key-value head count as one, which the published code refuses. It also takes keys that are left of the past
for neighbours; here each keeps its own time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import Observing, key_mask
from flowcache.kv.store.base import StoreShape
from flowcache.options import is_count


@dataclass(kw_only=True)
class TriAttention(Observing):
    """Attributes: ``horizon_frames`` is the furthest time ahead, in latent frames; a row shows it ``window`` queries.

    What it remembers takes 12 bytes for every layer, key-value head and pair of channels.
    """

    window: int | None = 64
    horizon_frames: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.horizon_frames):
            raise ValueError(f"horizon_frames={self.horizon_frames!r} must be a whole number of frames of at least 1")
        self._sums = self._sizes = torch.empty(0)
        self._seen: dict[int, int] = {}  # queries, by layer

    def allocate(self, shape: StoreShape) -> None:
        size = (shape.num_layers, shape.batch_size, shape.num_heads, shape.channels // 2)
        self._sums = torch.zeros(size, dtype=torch.complex64, device=shape.device)
        self._sizes = torch.zeros(size, dtype=torch.float32, device=shape.device)

    @property
    def nbytes(self) -> int:
        return self._sums.nbytes + self._sizes.nbytes

    def observe(self, entries: Entries) -> None:
        grouped = entries.query.unflatten(-3, (entries.key.shape[-3], -1)).flatten(-3, -2)  # [..., G, R*Q, E]
        heads = entries.query.shape[-3] // entries.key.shape[-3]
        frame = entries.query_position // entries.tokens_per_frame
        place = entries.query_position % entries.tokens_per_frame
        queries = entries.rotary.turned_back(grouped, frame.repeat(heads), place.repeat(heads))
        self._sums[entries.layer] += queries.sum(-2)
        self._sizes[entries.layer] += queries.abs().sum(-2)
        self._seen[entries.layer] = self._seen.get(entries.layer, 0) + grouped.shape[-2]

    def scores(self, entries: Entries) -> Tensor:
        seen, rotary = self._seen[entries.layer], entries.rotary
        mean, size = self._sums[entries.layer] / seen, self._sizes[entries.layer] / seen
        ahead = torch.tensor([2**i for i in range(self.horizon_frames.bit_length())], device=mean.device)
        angle = ahead[:, None] * rotary.time
        to_come = mean * torch.polar(torch.ones_like(angle), angle).mean(0)
        spread = size - mean.abs()
        newest = entries.position.amax() // entries.tokens_per_frame
        scores = []
        # A head at a time: its keys as complex numbers take no more than themselves in float32.
        parts = (entries.key.flatten(0, -3), entries.position.flatten(0, -2), to_come.flatten(0, -2))
        for key, position, query, own in zip(*parts, spread.flatten(0, -2), strict=True):
            turned = rotary.turned_back(key, newest.expand(len(key)), position % entries.tokens_per_frame)
            met = turned.real * query.real + turned.imag * query.imag
            scores.append(met.add_(turned.abs().mul_(own)).sum(-1))
        return torch.stack(scores).unflatten(0, entries.key.shape[:-2]) + key_mask(entries.key)

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        return 0
