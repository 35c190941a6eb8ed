"""Floating-point operations of SkyReels-V2's transformer, from shapes: matrix products only, multiply-add = 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowcache.kv_score import scoring_flops
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

    def chunk(self, kind: str, chunk: int, key_tokens: int) -> Work:
        """One chunk attending to ``key_tokens`` keys (its own included); only "denoise" goes through the head."""
        c, width, tokens = self.config, self._width, self.tokens_per_chunk
        per_token = 6 * width**2 + 2 * width * c["ffn_dim"]  # query, key, value, output; query, output; feed-forward
        per_token = c["num_layers"] * per_token + self._embedding + (self._head if kind == "denoise" else 0)
        attention = 4 * c["num_layers"] * tokens * width
        return Work(kind, chunk, 2 * tokens * per_token, attention * key_tokens, attention * self.caption_tokens)

    def reuse(self, chunk: int) -> Work:
        """A chunk that reuses is still embedded and put through the head."""
        return Work("reuse", chunk, 2 * self.tokens_per_chunk * (self._embedding + self._head), 0, 0)

    def compression(self, chunk: int, num_queries: int, key_tokens: int) -> Work:
        """Scoring finished chunks' keys, in every layer of one cache, by so many queries of a chunk."""
        heads = self.config["num_attention_heads"]
        flops = scoring_flops(heads, heads, self.config["attention_head_dim"], num_queries, key_tokens)
        return Work("compression", chunk, self.config["num_layers"] * flops, 0, 0)

    def caption(self) -> Work:
        """A caption's embedding and its cross-attention keys and values in every layer."""
        per_token = self.config["text_dim"] * self._width + (1 + 2 * self.config["num_layers"]) * self._width**2
        return Work("caption", -1, 2 * self.caption_tokens * per_token, 0, 0)

    def times(self, num_times: int) -> Work:
        """Embeddings and modulations of so many timesteps, and the frame rate's."""
        width = self._width
        per_time = self.config["freq_dim"] * width + 7 * width**2
        rate = 7 * width**2 if self.config["inject_sample_info"] else 0
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
