"""MAGI-1's video diffusion transformer (DiT), written to run any set of chunks against a shared key-value cache.

One forward takes a *pack*: chunks side by side, each with its own time, caption, position and span of chunks it attends
to. The official joint forward is a pack of all active chunks; a row with reuse is a smaller pack; the near-clean copy
and a finished chunk's refresh are one more member. Module names follow the official checkpoint
(SandAI-org/MAGI-1: inference/model/dit/dit_module.py), so its safetensors load as they are.

Shape letters: B batch, N chunks in the pack, T tokens a chunk, S = N*T, D hidden, H query heads, G key-value heads,
E channels a head, L caption tokens, C latent channels, f x h x w latent frames, rows and columns (before patching).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcache.kv_cache import KvCache

PROJECTION_SLICES = 8  # self- and cross-attention outputs interleave in 8 slices, a remnant of training on 8 GPUs


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the transformer, under the names of the official ``model_config``.

    ``xattn_cond_hidden_ratio`` and ``cond_gating_ratio`` are 1 in every released checkpoint and only 1 is supported.
    ``half_channel_vae`` (24B) doubles the 16 latent channels on the way in and keeps the first half on the way out.
    ``distill`` adds the step-size embedding of the distilled checkpoints.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    caption_channels: int = 4096
    caption_max_length: int = 800
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    t_patch_size: int = 1
    cond_hidden_ratio: float = 0.25
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False
    layernorm_epsilon: float = 1e-6
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False
    distill: bool = False
    params_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.xattn_cond_hidden_ratio != 1.0 or self.cond_gating_ratio != 1.0:
            raise ValueError(
                "xattn_cond_hidden_ratio and cond_gating_ratio must be 1.0, as in every released checkpoint"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_query_groups} key-value heads evenly; "
                "num_query_groups must divide num_attention_heads"
            )
        if self.query_width % PROJECTION_SLICES:
            raise ValueError(
                f"num_attention_heads * kv_channels = {self.query_width} must be a multiple of {PROJECTION_SLICES}"
            )

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.kv_channels

    @property
    def key_width(self) -> int:
        return self.num_query_groups * self.kv_channels

    @property
    def condition_width(self) -> int:
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that the model is given and returns."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels


@dataclass(frozen=True)
class CaptionKv:
    """One caption's cross-attention keys and values in every layer, each [B, G, L, E]; constant over all steps.

    ``mask`` (bool [B, 1, 1, L], True = attend) is None where every token counts.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None


@dataclass(frozen=True)
class Member:
    """One chunk of a pack.

    ``position`` is the chunk's index in the video (it sets the rotary time); ``first_key_chunk`` is the oldest chunk it
    attends to; it always ends with itself. An ``alone`` member attends to itself only and leaves the cache untouched.
    """

    position: int
    caption: CaptionKv
    first_key_chunk: int = 0
    alone: bool = False


@dataclass(frozen=True)
class _Pack:
    """What every layer needs to know about the members, worked out once a forward."""

    members: tuple[Member, ...]
    rope: tuple[Tensor, Tensor]  # cosine and sine, each [S, 1, 3E/8]
    cache: KvCache | None
    slices: tuple[slice, ...]  # of each member's tokens


class LayerNorm1p(nn.Module):
    """Layer norm whose stored weight is the effective weight minus one."""

    def __init__(self, width: int, config: DitConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.epsilon = config.layernorm_epsilon
        self.offset = 1.0 if config.apply_layernorm_1p else 0.0
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight + self.offset, self.bias, self.epsilon)


class TimestepEmbedder(nn.Module):
    """Sinusoids of 1000 t through a two-layer perceptron: [...] -> [..., condition width], float32."""

    def __init__(self, config: DitConfig, num_frequencies: int = 128) -> None:
        super().__init__()
        width = config.condition_width
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        exponent = torch.arange(self.num_frequencies, dtype=torch.float32, device=t.device) / self.num_frequencies
        frequencies = torch.exp(-math.log(10000.0) * exponent)
        # This order of products: in float32, (t * frequency) * 1000 differs from the others by 1e-3 after the sine.
        angles = t.float()[..., None] * frequencies * 1000
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class CaptionEmbedder(nn.Module):
    """Caption features for cross-attention, and the learned constant that tells a captioned pass from a dropped one."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.y_proj_xattn = nn.Sequential(nn.Linear(config.caption_channels, config.hidden_size), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(config.caption_channels, config.condition_width))
        null = torch.randn(config.caption_max_length, config.caption_channels) * config.caption_channels**-0.5
        self.null_caption_embedding = nn.Parameter(null)

    def constant(self, dropped: Tensor) -> Tensor:
        """Bool [...] -> [..., condition width]: last row of the null table where dropped, second-last where not."""
        rows = torch.where(dropped[..., None], self.null_caption_embedding[-1], self.null_caption_embedding[-2])
        return self.y_proj_adaln(rows)


class LearnedRotary(nn.Module):
    """Rotary angles from learned bands shared by time, height and width; a quarter of each head stays unrotated."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        num_bands = config.hidden_size // config.num_attention_heads // 8
        self.bands = nn.Parameter(10000.0 ** -(torch.arange(num_bands) / num_bands))

    def forward(self, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Absolute frame indices [F] and the token grid -> cosine and sine, each [F*height*width, 1, 3*bands]."""
        scale = math.sqrt(height * width / 256)
        axes = [frames.float(), *(self._centred(n, n / scale) for n in (height, width))]
        grid = torch.stack(torch.meshgrid(*(axis.to(self.bands.device) for axis in axes), indexing="ij"), dim=-1)
        angles = (grid[..., None] * self.bands).reshape(-1, 1, 3 * len(self.bands))
        return angles.cos(), angles.sin()

    @staticmethod
    def _centred(size: int, reference: float) -> Tensor:
        """Positions centred on zero, stretched so that their ends meet those of the reference size."""
        centred = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        return centred if size == 1 else centred / (size - 1) * (reference - 1)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, S, heads, E]: element i pairs with i + 3E/8; the last quarter passes through."""
    cosine, sine = rope
    width = cosine.shape[-1]
    first, second, rest = x.split([width, width, x.shape[-1] - 2 * width], dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine, rest], dim=-1)


class QueryKeyValue(nn.Module):
    """One input norm feeds the query, the cross-attention query, key and value; none has a bias."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width, dtype = config.hidden_size, config.params_dtype
        self.layer_norm = nn.LayerNorm(width, eps=config.layernorm_epsilon, dtype=dtype)
        self.q = nn.Linear(width, config.query_width, bias=False, dtype=dtype)
        self.qx = nn.Linear(width, config.query_width, bias=False, dtype=dtype)
        self.k = nn.Linear(width, config.key_width, bias=False, dtype=dtype)
        self.v = nn.Linear(width, config.key_width, bias=False, dtype=dtype)


class ParallelAttention(nn.Module):
    """Self-attention over chunks and cross-attention to the caption, side by side, joined by one projection."""

    def __init__(self, config: DitConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_groups, self.channels = (
            config.num_attention_heads,
            config.num_query_groups,
            config.kv_channels,
        )
        self.linear_qkv = QueryKeyValue(config)
        self.linear_kv_xattn = nn.Linear(
            config.hidden_size, 2 * config.key_width, bias=False, dtype=config.params_dtype
        )
        self.linear_proj = nn.Linear(2 * config.query_width, config.hidden_size, bias=False, dtype=config.params_dtype)
        self.q_layernorm = LayerNorm1p(config.kv_channels, config)
        self.k_layernorm = LayerNorm1p(config.kv_channels, config)
        self.q_layernorm_xattn = LayerNorm1p(config.kv_channels, config, config.params_dtype)
        self.k_layernorm_xattn = LayerNorm1p(config.kv_channels, config, config.params_dtype)

    def caption_kv(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded caption [B, L, D] -> key and value, each [B, G, L, E]; stored as [key | value] per head."""
        pairs = self.linear_kv_xattn(caption).unflatten(-1, (self.num_groups, 2 * self.channels)).transpose(1, 2)
        key, value = pairs.chunk(2, dim=-1)
        return self.k_layernorm_xattn(key), value

    def forward(self, x: Tensor, pack: _Pack) -> Tensor:
        """Tokens [B, S, D] -> projected attention [B, S, D]; writes the fresh keys and values into the cache."""
        normed = self.linear_qkv.layer_norm(x)
        query = self.linear_qkv.q(normed).unflatten(-1, (self.num_heads, self.channels))
        key = self.linear_qkv.k(normed).unflatten(-1, (self.num_groups, self.channels))
        value = self.linear_qkv.v(normed).unflatten(-1, (self.num_groups, self.channels)).transpose(1, 2)
        query = rotate(self.q_layernorm(query.float()), pack.rope).to(value.dtype).transpose(1, 2)
        key = rotate(self.k_layernorm(key.float()), pack.rope).to(value.dtype).transpose(1, 2)
        cross_query = self.linear_qkv.qx(normed).unflatten(-1, (self.num_heads, self.channels))
        cross_query = self.q_layernorm_xattn(cross_query).transpose(1, 2)

        self_out = self._self_attention(query, key, value, pack)
        cross_out = torch.cat(
            [
                grouped_attention(
                    cross_query[:, :, tokens],
                    member.caption.keys[self.layer],
                    member.caption.values[self.layer],
                    member.caption.mask,
                )
                for member, tokens in zip(pack.members, pack.slices, strict=True)
            ],
            dim=1,
        )
        joined = torch.stack([out.unflatten(-1, (PROJECTION_SLICES, -1)) for out in (self_out, cross_out)], dim=-2)
        # The official model runs this projection in float32 whatever the parameters' type.
        return F.linear(joined.flatten(-3).float(), self.linear_proj.weight.float())

    def _self_attention(self, query: Tensor, key: Tensor, value: Tensor, pack: _Pack) -> Tensor:
        if pack.cache is not None:
            for member, tokens in zip(pack.members, pack.slices, strict=True):
                if not member.alone:
                    pack.cache.write(self.layer, member.position, key[:, :, tokens], value[:, :, tokens])
        outputs = []
        for index, (member, tokens) in enumerate(zip(pack.members, pack.slices, strict=True)):
            if member.alone:
                seen_key, seen_value = key[:, :, tokens], value[:, :, tokens]
            elif pack.cache is not None:
                seen_key, seen_value = pack.cache.read(self.layer, member.first_key_chunk, member.position)
            else:
                # Without a cache the pack itself is the history: members stand in order of position, without gaps.
                back = min(index, member.position - member.first_key_chunk)
                span = slice(pack.slices[index - back].start, tokens.stop)
                seen_key, seen_value = key[:, :, span], value[:, :, span]
            outputs.append(grouped_attention(query[:, :, tokens], seen_key, seen_value))
        return torch.cat(outputs, dim=1)


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of H query heads over G key-value heads: [B, H, T, E], [B, G, L, E] -> [B, T, H*E].

    The query heads that share a key-value head are laid out as further queries of it: no copy of keys or values.
    """
    batch, heads, tokens, channels = query.shape
    folded = query.reshape(batch, key.shape[1], -1, channels)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return out.reshape(batch, heads, tokens, channels).transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    """Plain (GELU, exact) or gated (SiLU of the first half times the second) feed-forward without biases."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        width, inner, dtype = config.hidden_size, config.ffn_hidden_size, config.params_dtype
        self.gated = config.gated_linear_unit
        self.layer_norm = nn.LayerNorm(width, eps=config.layernorm_epsilon, dtype=dtype)
        self.linear_fc1 = nn.Linear(width, inner * (2 if self.gated else 1), bias=False, dtype=dtype)
        self.linear_fc2 = nn.Linear(inner, width, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear_fc1(self.layer_norm(x))
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.linear_fc2(F.silu(gate) * inner)
        return self.linear_fc2(F.gelu(inner))


class Gates(nn.Module):
    """Condition [B, N, condition width] -> tanh gates of attention and feed-forward, each [B, N, 1, D]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(config.condition_width, 2 * config.hidden_size, dtype=config.params_dtype))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.tanh(self.proj(F.silu(condition)).float())
        attention, feed_forward = gates[:, :, None].chunk(2, dim=-1)
        return attention, feed_forward


class Layer(nn.Module):
    """One block: x += PostNorm(gate * Attention(x)); x += PostNorm(gate * FeedForward(x))."""

    def __init__(self, config: DitConfig, layer: int) -> None:
        super().__init__()
        self.ada_modulate_layer = Gates(config)
        self.self_attention = ParallelAttention(config, layer)
        self.self_attn_post_norm = LayerNorm1p(config.hidden_size, config)
        self.mlp = FeedForward(config)
        self.mlp_post_norm = LayerNorm1p(config.hidden_size, config)

    def forward(self, x: Tensor, condition: Tensor, pack: _Pack) -> Tensor:
        attention_gate, mlp_gate = self.ada_modulate_layer(condition)
        x = self._add(x, self.self_attention(x, pack), attention_gate, self.self_attn_post_norm)
        return self._add(x, self.mlp(x), mlp_gate, self.mlp_post_norm)

    @staticmethod
    def _add(residual: Tensor, x: Tensor, gate: Tensor, post_norm: LayerNorm1p) -> Tensor:
        gated = (x.float().unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
        return (residual.float() + post_norm(gated)).to(residual.dtype)


class Layers(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.final_layernorm = LayerNorm1p(config.hidden_size, config)


class FinalLinear(nn.Module):
    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        patch_values = config.patch_size**2 * config.t_patch_size * config.out_channels
        self.linear = nn.Linear(config.hidden_size, patch_values, bias=False)


class MagiDit(nn.Module):
    """The velocity network: v(x_t, t, caption, history). Time runs from 0 (noise) to 1 (clean)."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.t_patch_size, config.patch_size, config.patch_size)
        self.x_embedder = nn.Conv3d(config.in_channels, config.hidden_size, patch, stride=patch, bias=False)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = CaptionEmbedder(config)
        self.rope = LearnedRotary(config)
        self.videodit_blocks = Layers(config)
        self.final_linear = FinalLinear(config)

    def embed(self, latent: Tensor) -> Tensor:
        """Latent [B, C, f, h, w] -> patch tokens [B, S, D] in (time, row, column) order, params_dtype."""
        scaled = latent.float() * self.config.x_rescale_factor
        if self.config.half_channel_vae:
            scaled = torch.cat([scaled, scaled], dim=1)
        return self.x_embedder(scaled).flatten(2).transpose(1, 2).to(self.config.params_dtype)

    def caption_kv(self, caption: Tensor, mask: Tensor | None = None) -> CaptionKv:
        """Text-encoder features [B, L, caption channels] (and bool mask [B, L] for a ragged batch) -> CaptionKv."""
        embedded = self.y_embedder.y_proj_xattn(caption.float()).to(self.config.params_dtype)
        pairs = [layer.self_attention.caption_kv(embedded) for layer in self.videodit_blocks.layers]
        mask = None if mask is None else mask[:, None, None, :]
        return CaptionKv(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), mask)

    def rope_table(self, num_chunks: int, chunk_frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every chunk of a video of latent rows and columns, each [num_chunks, T, 1, 3E/8]."""
        frames = torch.arange(num_chunks * chunk_frames // self.config.t_patch_size)
        tables = self.rope(frames, rows // self.config.patch_size, columns // self.config.patch_size)
        return tuple(table.unflatten(0, (num_chunks, -1)) for table in tables)

    def condition(self, times: Tensor, dropped: Tensor, step_size: float | None = None) -> Tensor:
        """Times [B, N] in [0, 1] and dropped-caption flags [B, N] -> condition [B, N, condition width].

        ``step_size`` is the distilled checkpoints' step-size number (see ``step_size_number``); required iff distill.
        """
        condition = self.t_embedder(times)
        if self.config.distill:
            condition = condition + self.t_embedder(torch.full_like(times, step_size))
        return (condition + self.y_embedder.constant(dropped)).to(self.config.params_dtype)

    def forward(
        self,
        latent: Tensor,
        times: Tensor,
        members: Sequence[Member],
        cache: KvCache | None = None,
        dropped: Tensor | None = None,
        step_size: float | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Velocity of every member of the pack.

        latent [B, C, f, h, w] holds the N = len(members) chunks one after another along f; times [B, N] in [0, 1];
        dropped (bool [B, N], default all False) marks passes without a caption; rope, if given, is the members' part of
        ``rope_table``. With a cache, every member's keys and values are written to it and history is read from it;
        without one, the pack is its own history and members must be consecutive chunks. Returns float32
        [B, C, f, h, w].
        """
        x = self.embed(latent)
        num_members = len(members)
        frames, height, width = latent.shape[2] // self.config.t_patch_size, latent.shape[3], latent.shape[4]
        height, width = height // self.config.patch_size, width // self.config.patch_size
        per_chunk, tokens = frames // num_members, x.shape[1] // num_members
        if rope is None:
            offsets = torch.tensor([member.position * per_chunk for member in members])
            rope = self.rope((offsets[:, None] + torch.arange(per_chunk)).flatten(), height, width)
        slices = tuple(slice(i * tokens, (i + 1) * tokens) for i in range(num_members))
        pack = _Pack(tuple(members), rope, cache, slices)
        if dropped is None:
            dropped = torch.zeros_like(times, dtype=torch.bool)
        condition = self.condition(times, dropped, step_size)
        for layer in self.videodit_blocks.layers:
            x = layer(x, condition, pack)
        x = self.final_linear.linear(self.videodit_blocks.final_layernorm(x.float()))
        return self._unpatchify(x, frames, height, width)

    def _unpatchify(self, x: Tensor, frames: int, height: int, width: int) -> Tensor:
        patch_frames, patch = self.config.t_patch_size, self.config.patch_size
        x = x.reshape(len(x), frames, height, width, patch_frames, patch, patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        velocity = x.reshape(len(x), -1, frames * patch_frames, height * patch, width * patch)
        return velocity[:, : self.config.latent_channels] / self.config.x_rescale_factor


def step_size_number(num_steps: int, interval: float) -> float:
    """The distilled model's step-size input: 8 / interval on the 12-step grid, else num_steps / 2.

    Source: SandAI-org/MAGI-1 inference/model/dit/dit_model.py (get_embedding_and_meta).
    """
    return 8.0 / interval if num_steps == 12 else num_steps / 2
