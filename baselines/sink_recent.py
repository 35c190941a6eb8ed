"""StreamingLLM (arXiv 2309.17453) on video: the first frames stay as attention sinks, and the newest ones.

In frames, where the text models' 4 tokens would be a corner of the first; positions stay those of the video.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowcache.kv.select.base import Entries, KeySelector, Selection
from flowcache.options import is_count


@dataclass(kw_only=True)
class SinkRecent(KeySelector):
    """Attributes: the first ``sink_frames`` latent frames always stay; the rest of the budget goes to the newest."""

    sink_frames: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.sink_frames, least=0):
            raise ValueError(f"sink_frames={self.sink_frames!r} must be a whole number of latent frames, at least 0")

    def unit_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        return tokens_per_frame

    def least_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        return (self.sink_frames + 1) * tokens_per_frame

    def select(self, entries: Entries, budget: int) -> Selection:
        length, sink = entries.key.shape[-2], self.sink_frames * entries.tokens_per_frame
        slots = torch.arange(length, device=entries.key.device)  # entries stand by position, also once compressed
        kept = torch.cat([slots[:sink], slots[length - budget + sink :]])
        heads = entries.key.shape[:-2]
        return Selection(kept.expand(*heads, -1), torch.zeros(heads, dtype=torch.int64, device=kept.device))
