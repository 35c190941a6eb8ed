"""SkyReels-V2's transformer: diffusers' modules and weights, run on any set of chunks of a window.

Shape letters: F latent frames given, P tokens a frame, D hidden, K timesteps, L caption tokens, N chunks, T tokens a
chunk, E channels a head, C latent channels, h x w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor

from flowcache.kernels import AUTO, attention_kernel, compile_methods
from flowcache.models.skyreels.attention import Block, CaptionKv, Member, Pack, caption_kv


def unusable(config: Any) -> str | None:
    """Why a transformer of this configuration cannot be used; None if it can."""
    if config.image_dim is None and config.added_kv_proj_dim is None and config.patch_size[0] == 1:
        return None
    return (
        "this transformer takes image embeddings or patches of several frames; use a diffusion-forcing checkpoint, "
        "such as SkyReels-V2-DF-1.3B-540P-Diffusers"
    )


@dataclass(frozen=True)
class TimeTable:
    """Of some timesteps: embeddings [K, D], which the head takes, and modulations [K, 6, D], which the blocks take."""

    embedding: Tensor
    modulation: Tensor


class SkyReelsNetwork:
    """The velocity network: v(x_t, t, caption, history). Time runs from 999 (noise) to 0 (clean).

    Raises ValueError for a transformer that is not of the diffusion-forcing family.

    Attributes:
        attention_backend: which kernel computes its attention, see flowcache.kernels.
    """

    def __init__(self, transformer: SkyReelsV2Transformer3DModel) -> None:
        config = transformer.config
        problem = unusable(config)
        if problem:
            raise ValueError(problem)
        self.transformer, self.config = transformer, config
        self.attention_backend = AUTO
        self._blocks = [Block(block, layer) for layer, block in enumerate(transformer.blocks)]

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.transformer.patch_embedding.weight.device

    def time_table(self, times: Tensor, fps: int) -> TimeTable:
        """Timesteps [K] and the frame rate (see Sampling) -> TimeTable."""
        embedder = self.transformer.condition_embedder
        waves = embedder.timesteps_proj(times).to(embedder.time_embedder.linear_1.weight.dtype)
        embedding = embedder.time_embedder(waves).to(embedder.time_proj.weight.dtype)
        modulation = embedder.time_proj(embedder.act_fn(embedding)).unflatten(-1, (6, -1))
        if self.config.inject_sample_info:
            index = torch.tensor([0 if fps == 16 else 1], device=times.device)
            rate = self.transformer.fps_projection(self.transformer.fps_embedding(index))
            modulation = modulation + rate.unflatten(-1, (6, -1))
        return TimeTable(embedding, modulation)

    def caption(self, features: Tensor) -> CaptionKv:
        """Text-encoder features [1, L, text channels] -> CaptionKv. Every position counts, padding too, as upstream."""
        text = self.transformer.condition_embedder.text_embedder(features.to(self.dtype))
        pairs = [caption_kv(block.attn2, text) for block in self.transformer.blocks]
        return CaptionKv(tuple(key for key, _ in pairs), tuple(value for _, value in pairs))

    def rope_table(self, num_chunks: int, chunk_frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every chunk of a window of latent rows and columns, each [N, T, 1, E/2]."""
        shape = (1, self.config.in_channels, num_chunks * chunk_frames, rows, columns)
        if shape[2] > self.transformer.rope.max_seq_len:
            raise ValueError(
                f"a window of {shape[2]} latent frames is longer than the network's "
                f"{self.transformer.rope.max_seq_len} positions; lower base_num_frames"
            )
        cosine, sine = self.transformer.rope(torch.empty(shape, device="meta"))
        # Both come with each value twice, for the two elements of a pair.
        return tuple(table[0, :, :, ::2].unflatten(0, (num_chunks, -1)).contiguous() for table in (cosine, sine))

    def embed(self, latent: Tensor) -> Tensor:
        """Latent [1, C, F, h, w] -> patch tokens [F, P, D]."""
        return self.transformer.patch_embedding(latent.to(self.dtype))[0].permute(1, 2, 3, 0).flatten(1, 2)

    def blocks(self, x: Tensor, modulation: Tensor, caption: CaptionKv, pack: Pack) -> Tensor:
        """Tokens [F, P, D] and each frame's modulation [F, 6, D] -> tokens after all transformer blocks.

        On device "meta", where there are shapes alone, one block stands for all, which are alike.
        """
        with attention_kernel(self.attention_backend):
            for block in self._blocks[: 1 if x.is_meta else None]:
                x = block(x, modulation, caption, pack)
        return x

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

    def joint(
        self, latent: Tensor, times: Tensor, caption: CaptionKv, fps: int = 24, block_size: int | None = None
    ) -> Tensor:
        """Velocity [1, C, F, h, w] of a whole window at once, each frame at its own timestep.

        Args:
            latent: [1, C, F, h, w].
            times: [F], or [1] for all frames.
            block_size: latent frames of a chunk, none of which sees later chunks; None lets every frame see all.
        """
        frames, rows, columns = latent.shape[2:]
        size = frames if block_size is None else block_size
        if frames % size:
            raise ValueError(f"{frames} latent frames are not whole chunks of {size}")
        count = frames // size
        rope = tuple(table.flatten(0, 1) for table in self.rope_table(count, size, rows, columns))
        x = self.embed(latent)
        members = tuple(Member(position, 0, position) for position in range(count))
        table = self.time_table(times.expand(frames), fps)
        x = self.blocks(x, table.modulation, caption, Pack(members, x.shape[1] * size, rope))
        return self.head(x, table.embedding, rows, columns)
