"""MAGI-1's video autoencoder: a vision transformer both ways, decoded tile by tile.

Shape letters: N batch, C latent channels, F pixel frames, H x W pixels, f x h x w latent frames, rows and columns.
Module names follow the official checkpoint (SandAI-org/MAGI-1: inference/model/vae/vae_module.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcache.models.magi.config import check_sizes

_SIZES = [
    "video_size",
    "video_length",
    "patch_size",
    "patch_length",
    "in_chans",
    "z_chans",
    "embed_dim",
    "depth",
    "num_heads",
]


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of the autoencoder, under the names of the official ``config.json`` (its ``ddconfig``).

    ``video_size`` (pixels) and ``video_length`` (frames) are the native size, at which positions are not resized.
    ``ln_in_attn`` normalises q, k and v per head instead of the block's input. ``embed_dim`` must hold whole patches
    (``patch_size**2 * patch_length`` divides it) unless ``use_final_proj`` maps tokens to four channels a pixel.
    """

    video_size: int = 256
    video_length: int = 16
    patch_size: int = 8
    patch_length: int = 4
    in_chans: int = 3
    z_chans: int = 16
    double_z: bool = True
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    with_cls_token: bool = True
    norm_code: bool = False
    ln_in_attn: bool = True
    conv_last_layer: bool = True
    use_rope: bool = False
    use_final_proj: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, _SIZES)
        if self.use_rope or self.norm_code or not self.conv_last_layer or not self.double_z:
            raise ValueError(
                "this VAE config asks for use_rope, norm_code, conv_last_layer=false or double_z=false, "
                "which this library does not implement; use the config.json that ships with the MAGI-1 checkpoint"
            )
        if not self.use_final_proj and self.embed_dim % self.patch_volume:
            raise ValueError(
                f"embed_dim {self.embed_dim} does not hold whole patches of {self.patch_length} x {self.patch_size} x "
                f"{self.patch_size} pixels; choose a multiple of {self.patch_volume} or set use_final_proj"
            )

    @property
    def patch_volume(self) -> int:
        return self.patch_size**2 * self.patch_length

    @property
    def native_grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns at the native size."""
        side = self.video_size // self.patch_size
        return self.video_length // self.patch_length, side, side


class _Attention(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.normalise = config.ln_in_attn
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        if self.normalise:
            std, mean = torch.std_mean(qkv, dim=-1, correction=0, keepdim=True)
            qkv = (qkv - mean) / (std + 1e-5)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class _Mlp(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, int(config.embed_dim * config.mlp_ratio))
        self.fc2 = nn.Linear(int(config.embed_dim * config.mlp_ratio), config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if config.ln_in_attn else nn.LayerNorm(config.embed_dim)
        self.attn = _Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Tokens(nn.Module):
    """What encoder and decoder share: class token, learned positions (resized when needed), blocks, final norm."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.num_cls_tokens = int(config.with_cls_token)
        if config.with_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        num_positions = math.prod(config.native_grid) + self.num_cls_tokens
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, config.embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        if grid == self.config.native_grid:
            return self.pos_embed
        cls_position, positions = self.pos_embed.split([self.num_cls_tokens, math.prod(self.config.native_grid)], dim=1)
        volume = positions.unflatten(1, self.config.native_grid).permute(0, 4, 1, 2, 3)
        resized = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
        return torch.cat([cls_position, resized.flatten(2).transpose(1, 2)], dim=1)

    def transform(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens [N, f*h*w, D] through the blocks; the class token is added before and dropped after."""
        if self.num_cls_tokens:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.num_cls_tokens :]


class _PatchEmbed(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video)


class _Encoder(_Tokens):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.patch_embed = _PatchEmbed(config)
        self.last_layer = nn.Linear(config.embed_dim, 2 * config.z_chans)

    def forward(self, video: Tensor) -> Tensor:
        """Video [N, 3, F, H, W] -> mean and log-variance [N, 2C, f, h, w]."""
        patches = self.patch_embed(video)
        grid = tuple(patches.shape[2:])
        moments = self.last_layer(self.transform(patches.flatten(2).transpose(1, 2), grid))
        return moments.unflatten(1, grid).permute(0, 4, 1, 2, 3)


class _Decoder(_Tokens):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.proj_in = nn.Linear(config.z_chans, config.embed_dim)
        channels = config.embed_dim // config.patch_volume
        if config.use_final_proj:
            channels = 4
            self.final_proj = nn.Linear(config.embed_dim, channels * config.patch_volume)
            self.final_norm = nn.LayerNorm(channels * config.patch_volume)
        self.last_layer = nn.Conv3d(channels, 3, kernel_size=3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Latent [N, C, f, h, w] -> video [N, 3, F, H, W]."""
        frames, rows, columns = grid = tuple(latent.shape[2:])
        x = self.transform(self.proj_in(latent.flatten(2).transpose(1, 2)), grid)
        if self.config.use_final_proj:
            x = self.final_norm(self.final_proj(x))
        length, size = self.config.patch_length, self.config.patch_size
        x = x.reshape(len(x), frames, rows, columns, length, size, size, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return self.last_layer(x.reshape(len(x), -1, frames * length, rows * size, columns * size))


@dataclass(frozen=True)
class Tiling:
    """Tile sizes in pixel frames and pixels; neighbours overlap by ``spatial_overlap`` of a tile in height and width.

    Temporal tiles do not overlap; they hold the whole latent frames that fit their size, at least one.
    Source: SandAI-org/MAGI-1 inference/pipeline/video_process.py, where a tile is fps // 2 frames long (12 at 24 fps),
    so a chunk of 6 latent frames is decoded as two independent halves.
    """

    frames: int = 12
    height: int = 256
    width: int = 256
    spatial_overlap: float = 0.25


class MagiVae(nn.Module):
    """ViT autoencoder. ``encode`` gives the posterior mean (deterministic), ``decode`` its pixels in [-1, 1].

    Attributes:
        presence: entered while tiles are computed; one that is kept in host memory visits its device in it.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.presence: AbstractContextManager = nullcontext()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.float()  # whatever torch's default type is

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance (clamped to [-30, 20]), each [N, C, f, h, w], of video [N, 3, F, H, W]."""
        mean, log_variance = self.encoder(video).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, video: Tensor) -> Tensor:
        """Video [N, 3, F, H, W] in [-1, 1] -> latent mean [N, C, f, h, w]. One frame counts as a still of one patch."""
        frames = video.shape[2]
        if frames == 1:
            return self.moments(video.expand(-1, -1, 4, -1, -1))[0][:, :, :1]
        if frames % self.config.patch_length:
            raise ValueError(
                f"{frames} frames do not fill whole latent frames of {self.config.patch_length}; "
                f"give 1 frame or a multiple of {self.config.patch_length}"
            )
        return self.moments(video)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [N, C, f, h, w] -> video [N, 3, F, H, W]. One latent frame gives one pixel frame, as upstream."""
        video = self.decoder(latent)
        return video[:, :, :1] if latent.shape[2] == 1 else video

    def tiled_encode(self, video: Tensor, tiling: Tiling) -> Tensor:
        """``encode`` tile by tile, video [N, 3, F, H, W] -> latent float32 [N, C, f, h, w]; overlaps are blended in the
        latent, each tile against already blended neighbours."""
        latent_tile, pixel_tile = self._tiles(tiling)
        with self.presence:
            encode = self._in_own_type(self.encode)
            return _tiled(video, encode, pixel_tile, latent_tile, tiling.spatial_overlap, in_place=True)

    def tiled_decode(self, latent: Tensor, tiling: Tiling) -> Tensor:
        """Latent [N, C, f, h, w] of a part of a video -> video float32 [N, 3, F, H, W], tile by tile; overlaps are
        blended in pixels, each tile against neighbours as decoded. Every latent frame gives ``patch_length`` pixel
        frames, one that is alone in its tile too (upstream shows one frame of it, as of a still, and so loses the
        others).
        """
        latent_tile, pixel_tile = self._tiles(tiling)
        with self.presence:
            decode = self._in_own_type(self.decoder)
            return _tiled(latent, decode, latent_tile, pixel_tile, tiling.spatial_overlap, in_place=False)

    def _in_own_type(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of float32 tiles: tiles are blended in it whatever the weights' type."""
        dtype = self.decoder.proj_in.weight.dtype
        return lambda tile: function(tile.to(dtype)).float()

    def _tiles(self, tiling: Tiling) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """A tile in latent frames, rows and columns, and in pixel frames and pixels."""
        length, size = self.config.patch_length, self.config.patch_size
        frames, rows, columns = max(1, tiling.frames // length), tiling.height // size, tiling.width // size
        return (frames, rows, columns), (frames * length, rows * size, columns * size)


def _tiled(
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    tile_in: tuple[int, int, int],
    tile_out: tuple[int, int, int],
    overlap: float,
    in_place: bool,
) -> Tensor:
    """Apply ``function`` to tiles of x [N, C, T, H, W]; each tile's first lines fade in from the tile before.

    ``in_place`` decides whether a tile fades against neighbours already faded themselves (upstream's encoder) or not
    (its decoder).
    """
    stride = (tile_in[0], int(tile_in[1] * (1 - overlap)), int(tile_in[2] * (1 - overlap)))
    fade = (int(tile_out[1] * overlap), int(tile_out[2] * overlap))
    keep_height, keep_width = tile_out[1] - fade[0], tile_out[2] - fade[1]
    slabs = []
    for t in range(0, x.shape[2], stride[0]):
        raw: dict[tuple[int, int], Tensor] = {}
        kept_rows = []
        for i, top in enumerate(range(0, x.shape[3], stride[1])):
            kept_row = []
            for j, left in enumerate(range(0, x.shape[4], stride[2])):
                crop = x[:, :, t : t + tile_in[0], top : top + tile_in[1], left : left + tile_in[2]]
                raw[i, j] = function(crop)
                tile = raw[i, j] if in_place else raw[i, j].clone()
                if i > 0:
                    _fade(raw[i - 1, j], tile, fade[0], dim=3)
                if j > 0:
                    _fade(raw[i, j - 1], tile, fade[1], dim=4)
                kept_row.append(tile[:, :, :, :keep_height, :keep_width])
            kept_rows.append(torch.cat(kept_row, dim=4))
        slabs.append(torch.cat(kept_rows, dim=3))
    return torch.cat(slabs, dim=2)


def _fade(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Blend the last ``extent`` lines of ``before`` into the first of ``after``, in place, linearly from 0 to 1."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    if extent == 0:
        return
    weight = torch.arange(extent, device=after.device, dtype=after.dtype) / extent
    weight = weight.view([-1] + [1] * (after.ndim - 1 - dim))
    head = after.narrow(dim, 0, extent)
    head.copy_(before.narrow(dim, before.shape[dim] - extent, extent) * (1 - weight) + head * weight)
