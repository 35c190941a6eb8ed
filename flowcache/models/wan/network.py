"""Wan's transformer: diffusers' modules and weights, run on any set of chunks.

Shape letters: F latent frames given, P tokens a frame, D hidden, K timesteps, L caption tokens, E channels a head, C
latent channels, h x w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from diffusers import SkyReelsV2Transformer3DModel, WanTransformer3DModel
from torch import Tensor

from flowcache.kernels import AUTO, attention_kernel, compile_methods
from flowcache.kv.cache import KvCache
from flowcache.models.chunk_tokens import RunningTokens
from flowcache.models.wan.attention import Block, CaptionKv, Member, Pack, caption_kv
from flowcache.parallel import ALONE, Parallel

Transformer: TypeAlias = WanTransformer3DModel | SkyReelsV2Transformer3DModel


@dataclass(frozen=True)
class TimeTable:
    """Of some timesteps: embeddings [K, D], which the head takes, and modulations [K, 6, D], which the blocks take."""

    embedding: Tensor
    modulation: Tensor


def unusable(config: Any) -> str | None:
    """Why a transformer of this configuration cannot be used; None if it can."""
    if config.image_dim is None and config.added_kv_proj_dim is None and config.patch_size[0] == 1:
        return None
    return "this transformer takes image embeddings or patches of several frames"


class WanNetwork:
    """The velocity network: v(x_t, t, caption, history) = noise - clean. Time runs from 1000 (noise) to 0 (clean).

    Raises ValueError for a transformer that takes more than text and latents.

    Attributes:
        attention_backend, depth: which kernel computes its attention, and how many layers run, see flowcache.kernels.
        parallel: this process's part in generations, see flowcache.parallel.
    """

    def __init__(self, transformer: Transformer) -> None:
        config = transformer.config
        problem = unusable(config)
        if problem:
            raise ValueError(problem)
        self.transformer, self.config = transformer, config
        self.attention_backend, self.depth = AUTO, None
        self.parallel: Parallel = ALONE
        self._blocks = [Block(block, layer) for layer, block in enumerate(transformer.blocks)]

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.transformer.patch_embedding.weight.device

    def time_table(self, times: Tensor) -> TimeTable:
        """Timesteps [K], whole or not -> TimeTable."""
        embedder = self.transformer.condition_embedder
        # Angles in float64, as in the original; diffusers' Wan works them out in float32.
        half = self.config.freq_dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device=times.device) / half
        angles = times.to(torch.float64)[:, None] * torch.pow(10000.0, -exponents)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedding = embedder.time_embedder(waves.to(embedder.time_embedder.linear_1.weight.dtype))
        embedding = embedding.to(embedder.time_proj.weight.dtype)
        return TimeTable(embedding, embedder.time_proj(embedder.act_fn(embedding)).unflatten(-1, (6, -1)))

    def caption(self, features: Tensor) -> CaptionKv:
        """Text-encoder features [1, L, text channels] -> CaptionKv. Every position counts, padding too, as upstream."""
        text = self.transformer.condition_embedder.text_embedder(features.to(self.dtype))
        pairs = [caption_kv(block.attn2, text) for block in self.transformer.blocks]
        return CaptionKv(tuple(key for key, _ in pairs), tuple(value for _, value in pairs))

    def rope_table(self, num_frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of latent frames from the first on, of so many latent rows and columns: each [F, P, 1, E/2].

        Raises ValueError beyond the network's positions.
        """
        most = self.transformer.rope.max_seq_len
        if num_frames > most:
            raise ValueError(f"{num_frames} latent frames are more than the network's {most} positions")
        shape = (1, self.config.in_channels, num_frames, rows, columns)
        tables = self.transformer.rope(torch.empty(shape, device="meta"))
        # Both come with each value twice, for the two elements of a pair.
        cosine, sine = (table[0, :, :, ::2].unflatten(0, (num_frames, -1)).contiguous() for table in tables)
        return cosine, sine

    def embed(self, latent: Tensor) -> Tensor:
        """Latent [1, C, F, h, w] -> patch tokens [F, P, D]."""
        return self.transformer.patch_embedding(latent.to(self.dtype))[0].permute(1, 2, 3, 0).flatten(1, 2)

    def blocks(self, x: Tensor, modulation: Tensor, caption: CaptionKv, pack: Pack) -> Tensor:
        """Tokens [F, P, D] and each frame's modulation [F, 6, D] -> tokens after all transformer blocks.

        Tokens are [S, 1, D] where ``pack.rows`` says each one's frame.

        On device "meta", where there are shapes alone, one block stands for all, which are alike.
        """
        frames, split = len(x), self.parallel.split(*x.shape[:2])
        if split is not None:
            x = split.own(x.flatten(0, 1), dim=0).unflatten(0, (frames, -1))
            pack = replace(pack, rope=tuple(split.own(table, dim=0) for table in pack.rope), split=split)
        with attention_kernel(self.attention_backend):
            for block in self._blocks[: 1 if x.is_meta else self.depth]:
                x = block(x, modulation, caption, pack)
        return x if split is None else split.whole(x.flatten(0, 1), dim=0).unflatten(0, (frames, -1))

    def run(
        self,
        x: Tensor,
        modulation: Tensor,
        caption: CaptionKv,
        members: Sequence[Member],
        rope: tuple[Tensor, Tensor],
        cache: KvCache | None = None,
    ) -> Tensor:
        """The same of members of as many tokens each, of which only their subsets run; others stay as they are.

        ``rope`` is all of the members' tokens', each [F*P, 1, E/2].
        """
        frames, tokens_per_frame, _ = x.shape
        subsets = [member.subset for member in members]
        running = RunningTokens.of(subsets, frames * tokens_per_frame // len(members))
        rope = tuple(running.take(table, dim=0) for table in rope)
        pack = Pack(tuple(members), rope, cache, running.rows(tokens_per_frame))
        if running.places is None:
            return self.blocks(x, modulation, caption, pack)
        flat = x.flatten(0, 1)[:, None]
        after = self.blocks(running.take(flat, dim=0), modulation, caption, pack)
        return running.put(after, flat, dim=0).view_as(x)

    def compile_blocks(self) -> None:
        """Compile what the blocks do to each token by itself; attention runs as it is."""
        for block in self._blocks:
            compile_methods(block, "_project", "_between", "_finish")

    def head(self, x: Tensor, embedding: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens [F, P, D] and each frame's time embedding [F, D] -> velocity float32 [1, C, F, h, w]."""
        shift, scale = (self.transformer.scale_shift_table + embedding[:, None]).chunk(2, dim=1)
        x = (self.transformer.norm_out(x.float()) * (1 + scale) + shift).to(x.dtype)
        _, patch_rows, patch_columns = self.config.patch_size
        patches = self.transformer.proj_out(x).unflatten(-1, (patch_rows, patch_columns, -1))
        patches = patches.unflatten(1, (rows // patch_rows, columns // patch_columns))
        return patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)[None].float()
