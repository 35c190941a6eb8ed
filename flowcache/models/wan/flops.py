"""Floating-point operations of Wan's transformer, from shapes: matrix products only, multiply-add = 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowcache.schedule import Schedule
from flowcache.trace import Trace, Work


@dataclass(frozen=True)
class FlopCounter:
    """Counts one chunk's forward in one guidance branch.

    Args:
        config: of the transformer, under diffusers' names.
        tokens_per_chunk: T.
        caption_tokens: L; every position counts.
    """

    config: Mapping[str, Any]
    tokens_per_chunk: int
    caption_tokens: int

    def chunk(self, kind: str, chunk: int, key_tokens: int, tokens: int | None = None) -> Work:
        """One chunk attending to ``key_tokens`` keys (its own included); only "denoise" goes through the head.

        ``tokens`` of it go through the blocks, all by default; embedding and head take the whole chunk.
        """
        c, width, tokens = self.config, self._width, self.tokens_per_chunk if tokens is None else tokens
        per_token = 6 * width**2 + 2 * width * c["ffn_dim"]  # query, key, value, output; query, output; feed-forward
        ends = self.tokens_per_chunk * (self._embedding + (self._head if kind == "denoise" else 0))
        gemm = 2 * (tokens * c["num_layers"] * per_token + ends)
        attention = 4 * c["num_layers"] * tokens * width
        return Work(kind, chunk, gemm, attention * key_tokens, attention * self.caption_tokens)

    def reuse(self, chunk: int) -> Work:
        """A chunk that reuses is still embedded and put through the head."""
        return Work("reuse", chunk, 2 * self.tokens_per_chunk * (self._embedding + self._head), 0, 0)

    def compression(self, chunk: int, layer_flops: int) -> Work:
        """Choosing what one cache keeps by a chunk's queries, at so many FLOPs in every layer."""
        return Work("compression", chunk, self.config["num_layers"] * layer_flops, 0, 0)

    def caption(self) -> Work:
        """A caption's embedding and its cross-attention keys and values in every layer."""
        per_token = self.config["text_dim"] * self._width + (1 + 2 * self.config["num_layers"]) * self._width**2
        return Work("caption", -1, 2 * self.caption_tokens * per_token, 0, 0)

    def times(self, num_times: int) -> Work:
        """Embeddings and modulations of so many timesteps, and the frame rate's."""
        width = self._width
        per_time = self.config["freq_dim"] * width + 7 * width**2
        rate = 7 * width**2 if self.config.get("inject_sample_info") else 0
        return Work("time", -1, 2 * (num_times * per_time + rate), 0, 0)

    def paper(self, trace: Trace, schedule: Schedule) -> int:
        """The run in the paper's accounting: block-causal attention, whatever ran.

        A forward that computes a whole window is charged all of the window's chunks, waiting and finished ones too,
        each attending to itself and those before; a forward through the cache, the chunks it denoises. Encoding given
        and finished chunks, captions and times are not charged.
        """
        total = 0
        for row, work in trace.work:
            if work.kind in ("denoise", "context"):
                position = work.chunk - schedule.windows[schedule.rows[row].window].first_chunk
                total += self.chunk("denoise", work.chunk, (position + 1) * self.tokens_per_chunk).flops
        return total

    @property
    def _width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def _embedding(self) -> int:
        """Multiply-adds of the patch embedding, a token."""
        return self._width * self.config["in_channels"] * math.prod(self.config["patch_size"])

    @property
    def _head(self) -> int:
        """Multiply-adds of the output projection, a token."""
        return self._width * self.config["out_channels"] * math.prod(self.config["patch_size"])
