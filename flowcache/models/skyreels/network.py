"""SkyReels-V2's transformer: Wan's, that may be told the frame rate.

Shape letters: F latent frames given, K timesteps, C latent channels, h x w latent rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor

from flowcache.models.wan import network as wan
from flowcache.models.wan.attention import CaptionKv, Member, Pack
from flowcache.models.wan.network import TimeTable, WanNetwork


def unusable(config: Any) -> str | None:
    """Why a transformer of this configuration cannot be used; None if it can."""
    problem = wan.unusable(config)
    return problem and (f"{problem}; use a diffusion-forcing checkpoint, such as SkyReels-V2-DF-1.3B-540P-Diffusers")


class SkyReelsNetwork(WanNetwork):
    """See WanNetwork. Raises ValueError for a transformer that is not of the diffusion-forcing family."""

    def __init__(self, transformer: SkyReelsV2Transformer3DModel) -> None:
        problem = unusable(transformer.config)
        if problem:
            raise ValueError(problem)
        super().__init__(transformer)

    def time_table(self, times: Tensor, fps: int = 24) -> TimeTable:
        """Timesteps [K] and the frame rate (see Sampling) -> TimeTable."""
        table = super().time_table(times)
        if not self.config.inject_sample_info:
            return table
        index = torch.tensor([0 if fps == 16 else 1], device=times.device)
        rate = self.transformer.fps_projection(self.transformer.fps_embedding(index))
        return TimeTable(table.embedding, table.modulation + rate.unflatten(-1, (6, -1)))

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
        rope = tuple(table.flatten(0, 1) for table in self.rope_table(frames, rows, columns))
        x = self.embed(latent)
        members = tuple(Member(position, x.shape[1] * size, 0, position) for position in range(frames // size))
        table = self.time_table(times.expand(frames), fps)
        x = self.blocks(x, table.modulation, caption, Pack(members, rope))
        return self.head(x, table.embedding, rows, columns)
