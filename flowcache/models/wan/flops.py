"""Floating-point operations of Wan's transformer, from shapes: matrix products only, multiply-add = 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flowcache.trace import Work


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

    def chunk(self, kind: str, chunk: int, key_tokens: int | Fraction, tokens: int | None = None) -> Work:
        """One chunk attending to ``key_tokens`` keys (its own included), the mean over layers and heads where those
        differ; only "denoise" goes through the head.

        ``tokens`` of it go through the blocks, all by default; embedding and head take the whole chunk.
        """
        c, width, tokens = self.config, self._width, self.tokens_per_chunk if tokens is None else tokens
        per_token = 6 * width**2 + 2 * width * c["ffn_dim"]  # query, key, value, output; query, output; feed-forward
        ends = self.tokens_per_chunk * (self._embedding + (self._head if kind == "denoise" else 0))
        gemm = 2 * (tokens * c["num_layers"] * per_token + ends)
        attention = 4 * c["num_layers"] * tokens * width
        return Work(kind, chunk, gemm, int(attention * key_tokens), attention * self.caption_tokens)

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
