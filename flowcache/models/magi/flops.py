"""Floating-point operations of MAGI-1's transformer, counted from shapes: matrix products only, multiply-add = 2."""

from __future__ import annotations

from dataclasses import dataclass

from flowcache.models.magi.config import DitConfig
from flowcache.trace import Trace, Work


@dataclass(frozen=True)
class FlopCounter:
    """Counts one chunk's forward.

    Args:
        config: of the network.
        tokens_per_chunk: T.
    """

    config: DitConfig
    tokens_per_chunk: int

    def chunk(self, kind: str, chunk: int, key_tokens: int, caption_tokens: int, tokens: int | None = None) -> Work:
        """One chunk attending to ``key_tokens`` keys (its own included) and ``caption_tokens`` of its caption;
        ``tokens`` of it run, all by default; the embedding takes the whole chunk."""
        c, tokens = self.config, self.tokens_per_chunk if tokens is None else tokens
        patch = c.patch_size**2 * c.t_patch_size
        fc1_width = c.ffn_hidden_size * (2 if c.gated_linear_unit else 1)
        per_token = c.hidden_size * (2 * c.query_width + 2 * c.key_width)  # q, qx, k, v
        per_token += 2 * c.query_width * c.hidden_size  # output projection
        per_token += c.hidden_size * (fc1_width + c.ffn_hidden_size)
        per_token = c.num_layers * per_token + c.hidden_size * patch * c.out_channels
        embedding = self.tokens_per_chunk * c.hidden_size * patch * c.in_channels
        attention = 4 * c.num_layers * tokens * c.query_width
        return Work(
            kind,
            chunk,
            gemm_flops=2 * (tokens * per_token + embedding),
            self_attention_flops=attention * key_tokens,
            cross_attention_flops=attention * caption_tokens,
        )

    def caption(self, chunk: int, caption_tokens: int) -> Work:
        """A caption's cross-attention keys and values in every layer."""
        c = self.config
        per_token = c.caption_channels * c.hidden_size + c.num_layers * c.hidden_size * 2 * c.key_width
        return Work("caption", chunk, 2 * caption_tokens * per_token, 0, 0)

    def times(self, num_times: int) -> Work:
        """The gates of so many times in every layer, dropped captions counting as times of their own."""
        c, width = self.config, self.config.condition_width
        embeddings = (256 * width + width * width) * (2 if c.distill else 1) + c.caption_channels * width
        return Work("time", -1, 2 * num_times * (embeddings + c.num_layers * width * 2 * c.hidden_size), 0, 0)

    def paper(self, trace: Trace) -> int:
        """The run in the paper's accounting: its denoising forwards, near-clean copies among them.

        Refreshing finished chunks, and encoding given ones and captions, is not charged.
        """
        return sum(work.flops for _, work in trace.work if work.kind in ("denoise", "near_clean"))

    def compression(self, chunk: int, layer_flops: int) -> Work:
        """Choosing what one cache keeps by a chunk's queries, at so many FLOPs in every layer."""
        return Work("compression", chunk, self.config.num_layers * layer_flops, 0, 0)
