"""Selectors that give every key a score: what their scores are is all that they say; the rest is the same for all.

Shape letters: ``...`` any leading dimensions, G key-value heads, H query heads, T tokens a chunk, L keys, E channels.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from flowcache.kv.select.base import Entries, KeySelector, Selection, Unit, keep_best
from flowcache.options import check_choice, is_count, is_number


@dataclass(kw_only=True)
class ByScore(KeySelector):
    """Keeps the first frames, the newest ones and, of the keys between, those of the highest score.

    Attributes:
        selection: single tokens, whole frames or whole chunks are kept, by the mean score of their tokens.
        sink_frames: latent frames at the beginning that always stay.
        recent_share: share of the budget beside them that goes to the newest keys whatever their score, from 0 to below
            1, rounded down to whole frames.

    Sinks and newest keys are rounded, up and down, to whole chunks too where chunks are selected.
    """

    selection: Unit = "token"
    sink_frames: int = 0
    recent_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("selection", self.selection, get_args(Unit))
        if not is_count(self.sink_frames, least=0):
            raise ValueError(f"sink_frames={self.sink_frames!r} must be a whole number of latent frames, at least 0")
        if not (is_number(self.recent_share) and 0 <= self.recent_share < 1):
            raise ValueError(f"recent_share={self.recent_share!r} must be a number from 0 to below 1")

    @abstractmethod
    def scores(self, entries: Entries) -> Tensor:
        """Float32 [..., G, L], the higher the better; NaN or -inf for keys that nothing can be said about."""

    def unit_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        return {"token": 1, "frame": tokens_per_frame, "chunk": tokens_per_chunk}[self.selection]

    def least_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        unit = self.unit_tokens(tokens_per_frame, tokens_per_chunk)
        return self._sink_tokens(tokens_per_frame, unit) + unit

    def select(self, entries: Entries, budget: int) -> Selection:
        length, frame = entries.key.shape[-2], entries.tokens_per_frame
        if budget >= length:
            return keep_best(key_mask(entries.key), budget)
        unit = self.unit_tokens(frame, entries.tokens_per_chunk)
        sink = self._sink_tokens(frame, unit)
        whole = max(unit, frame)
        recent = int(self.recent_share * (budget - sink)) // whole * whole
        # Entries stand by position, also once compressed.
        best = keep_best(self.scores(entries)[..., sink : length - recent], budget - sink - recent, unit)
        slots = torch.arange(length, device=best.indices.device).expand(*best.indices.shape[:-1], -1)
        kept = torch.cat([slots[..., :sink], best.indices + sink, slots[..., length - recent :]], dim=-1)
        return Selection(kept, best.unusable)

    def _sink_tokens(self, tokens_per_frame: int, unit: int) -> int:
        """In whole units."""
        return -(-self.sink_frames * tokens_per_frame // unit) * unit


def key_mask(key: Tensor) -> Tensor:
    """Of keys [..., G, L, E]: float32 [..., G, L], 0, or -inf for those that are zero or not finite, which no query can
    be held against."""
    norm = torch.linalg.vector_norm(key, dim=-1, dtype=torch.float32)
    return torch.zeros_like(norm).masked_fill_(~norm.isfinite() | (norm == 0), -torch.inf)


@dataclass(kw_only=True)
class ByAttention(ByScore):
    """Scores by the attention of some of a chunk's queries, its observation window.

    In language models the window is the newest tokens. Of a video those are a corner of one frame, and so the window is
    spread evenly over ``window_over``. A chunk's queries are not among the keys, so that nothing of the budget is spent
    on them, and a chunk attends in both directions, so that nothing is masked.

    Attributes:
        window: queries looked at, at most; None is all there are.
        window_over: the "chunk" being denoised or its last "frame".
    """

    window: int | None = None
    window_over: Literal["frame", "chunk"] = "chunk"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("window_over", self.window_over, ("frame", "chunk"))
        if self.window is not None and not is_count(self.window):
            raise ValueError(f"window={self.window!r} must be a whole number of queries of at least 1, or null for all")

    def num_queries(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        there = tokens_per_chunk if self.window_over == "chunk" else tokens_per_frame
        return there if self.window is None else min(self.window, there)

    def queries(self, query: Tensor, tokens_per_frame: int) -> Tensor:
        num_tokens = query.shape[-2]
        count = self.num_queries(tokens_per_frame, num_tokens)
        there = num_tokens if self.window_over == "chunk" else tokens_per_frame
        if count == there:
            return query[..., num_tokens - there :, :]
        middles = (2 * torch.arange(count, device=query.device) + 1) * there // (2 * count)
        return query[..., num_tokens - there + middles, :]

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        return 2 * num_heads * num_queries * length * channels


@dataclass(kw_only=True)
class Observing(ByAttention):
    """Looks at queries while nothing must go, too.

    Attributes:
        look_every: computing rows from one look to the next. A chunk's queries change little from row to row, and a
            look in each would take several percent of a small model's time.
    """

    observes: ClassVar[bool] = True
    look_every: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.look_every):
            raise ValueError(f"look_every={self.look_every!r} must be a whole number of rows of at least 1")
