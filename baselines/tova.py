"""TOVA (arXiv 2401.06104): the keys that the newest queries attend to, the same ones in all heads of a layer.

The last token's attention, its mean over all heads (NVIDIA/kvpress: TOVAPress); on video the last frame's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByAttention, key_mask
from flowcache.kv.select.scores import attention_received


@dataclass(kw_only=True)
class Tova(ByAttention):
    """Attributes: see ByScore and ByAttention."""

    heads_apart: ClassVar[bool] = False
    window: int | None = None
    window_over: Literal["frame", "chunk"] = "frame"

    def scores(self, entries: Entries) -> Tensor:
        received = attention_received(entries.query, entries.key) / entries.query.shape[-2]
        return received.mean((-3, -2), keepdim=True)[..., 0, :] + key_mask(entries.key)
