"""MAGI-1's video diffusion transformer (DiT), written to run any set of chunks against a shared key-value cache.

One forward takes a *pack*: chunks side by side, each with its own time, caption, position and span of chunks it attends
to. The official joint forward is a pack of all active chunks; a row with reuse is a smaller pack; the near-clean copy
and a finished chunk's refresh are one more member. Module names follow the official checkpoint
(SandAI-org/MAGI-1: inference/model/dit/dit_module.py), so its safetensors load as they are.

Shape letters: B batch, N chunks in the pack, T tokens a chunk, S = N*T, D hidden, E channels a head, L caption tokens,
C latent channels, f x h x w latent frames, rows and columns (before patching).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcache.kernels import AUTO, attention_kernel, compile_methods
from flowcache.kv.cache import KvCache
from flowcache.models.chunk_tokens import RunningTokens
from flowcache.models.magi.attention import CaptionKv, LayerNorm1p, LearnedRotary, Member, Pack, ParallelAttention
from flowcache.models.magi.config import DitConfig
from flowcache.parallel import ALONE, Parallel


class TimestepEmbedder(nn.Module):
    """Sinusoids of 1000 t through a two-layer perceptron: [...] -> [..., condition width], float32."""

    def __init__(self, config: DitConfig, num_frequencies: int = 128) -> None:
        super().__init__()
        width = config.condition_width
        self.num_frequencies = num_frequencies
        first = nn.Linear(2 * num_frequencies, width, dtype=torch.float32)
        self.mlp = nn.Sequential(first, nn.SiLU(), nn.Linear(width, width, dtype=torch.float32))

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
        channels = config.caption_channels
        self.y_proj_xattn = nn.Sequential(nn.Linear(channels, config.hidden_size, dtype=torch.float32), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(channels, config.condition_width, dtype=torch.float32))
        null = torch.randn(config.caption_max_length, channels, dtype=torch.float32) * channels**-0.5
        self.null_caption_embedding = nn.Parameter(null)

    def constant(self, dropped: Tensor) -> Tensor:
        """Bool [...] -> [..., condition width]: last row of the null table where dropped, second-last where not."""
        rows = torch.where(dropped[..., None], self.null_caption_embedding[-1], self.null_caption_embedding[-2])
        return self.y_proj_adaln(rows)


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
    """Condition [..., condition width] -> tanh gates of attention and feed-forward, float32 [..., 2 D]."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(config.condition_width, 2 * config.hidden_size, dtype=config.params_dtype))

    def forward(self, condition: Tensor) -> Tensor:
        return torch.tanh(self.proj(F.silu(condition)).float())


class Layer(nn.Module):
    """One block: x += PostNorm(gate * Attention(x)); x += PostNorm(gate * FeedForward(x))."""

    def __init__(self, config: DitConfig, layer: int) -> None:
        super().__init__()
        self.ada_modulate_layer = Gates(config)
        self.self_attention = ParallelAttention(config, layer)
        self.self_attn_post_norm = LayerNorm1p(config.hidden_size, config)
        self.mlp = FeedForward(config)
        self.mlp_post_norm = LayerNorm1p(config.hidden_size, config)

    def forward(self, x: Tensor, gates: Tensor, pack: Pack) -> Tensor:
        if pack.rows is not None:
            gates = gates[:, pack.rows]
        attention_gate, mlp_gate = gates[:, :, None].chunk(2, dim=-1)
        x = self._add(x, self.self_attention(x, pack), attention_gate, self.self_attn_post_norm)
        return self._add(x, self.mlp(x), mlp_gate, self.mlp_post_norm)

    @staticmethod
    def _add(residual: Tensor, x: Tensor, gate: Tensor, post_norm: LayerNorm1p) -> Tensor:
        gated = (x.float().unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)
        return (residual.float() + post_norm(gated)).to(residual.dtype)


class Layers(nn.Module):
    """All layers, and the norm after the last; a module of its own for the checkpoint's names."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.final_layernorm = LayerNorm1p(config.hidden_size, config)


class FinalLinear(nn.Module):
    """Tokens to the values of their patches; a module of its own for the checkpoint's names."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        patch_values = config.patch_size**2 * config.t_patch_size * config.out_channels
        self.linear = nn.Linear(config.hidden_size, patch_values, bias=False, dtype=torch.float32)


class MagiDit(nn.Module):
    """The velocity network: v(x_t, t, caption, history). Time runs from 0 (noise) to 1 (clean).

    Attributes:
        attention_backend, depth: which kernel computes its attention, and how many layers run, see flowcache.kernels.
        parallel: this process's part in generations, see flowcache.parallel.
    """

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend, self.depth = AUTO, None
        self.parallel: Parallel = ALONE
        patch = (config.t_patch_size, config.patch_size, config.patch_size)
        sizes = (config.in_channels, config.hidden_size, patch, patch)
        self.x_embedder = nn.Conv3d(*sizes, bias=False, dtype=torch.float32)
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
        """Rotary factors of every chunk of a video of latent rows and columns, each [num_chunks, T, 1, E]."""
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

    def gates(self, times: Tensor, dropped: Tensor | None = None, step_size: float | None = None) -> Tensor:
        """What ``forward`` needs to know of times [B, N]: every layer's gates, float32 [layers, B, N, 2 D].

        For ``dropped`` (default all False) and ``step_size`` see ``condition``.
        """
        dropped = torch.zeros_like(times, dtype=torch.bool) if dropped is None else dropped
        condition = self.condition(times, dropped, step_size)
        return torch.stack([layer.ada_modulate_layer(condition) for layer in self.videodit_blocks.layers])

    def forward(
        self,
        latent: Tensor,
        gates: Tensor,
        members: Sequence[Member],
        cache: KvCache | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Velocity of every member of the pack.

        latent [B, C, f, h, w] holds the N = len(members) chunks one after another along f; ``gates`` are the members';
        rope, if given, is their part of ``rope_table``. With a cache, every member's keys and values are written to it
        and history is read from it; without one, the pack is its own history and members must be consecutive chunks.
        On device "meta", where there are shapes alone, one layer stands for all, which are alike. Returns float32
        [B, C, f, h, w], zeros where a member's tokens do not run.
        """
        x = self.embed(latent)
        num_members = len(members)
        frames, height, width = latent.shape[2] // self.config.t_patch_size, latent.shape[3], latent.shape[4]
        height, width = height // self.config.patch_size, width // self.config.patch_size
        per_chunk, tokens = frames // num_members, x.shape[1] // num_members
        if rope is None:
            offsets = torch.tensor([member.position * per_chunk for member in members])
            rope = self.rope((offsets[:, None] + torch.arange(per_chunk)).flatten(), height, width)
        running = RunningTokens.of([member.subset for member in members], tokens)
        rope = tuple(running.take(table, dim=0) for table in rope)
        x = running.take(x, dim=1)
        split = self.parallel.split(num_members, tokens)
        if split is not None:
            x, rope = split.own(x, dim=1), tuple(split.own(table, dim=0) for table in rope)
        pack = Pack(tuple(members), rope, cache, running.slices, running.rows(tokens), split)
        with attention_kernel(self.attention_backend):
            for layer, own in zip(self.videodit_blocks.layers[: 1 if x.is_meta else self.depth], gates, strict=False):
                x = layer(x, own, pack)
        x = self.final_linear.linear(self.videodit_blocks.final_layernorm(x.float()))
        if split is not None:
            x = split.whole(x, dim=1)
        if running.places is not None:
            x = running.put(x, x.new_zeros(len(x), num_members * tokens, x.shape[2]), dim=1)
        return self._unpatchify(x, frames, height, width)

    def compile_blocks(self) -> None:
        """Compile what the layers do to each token by itself; attention and its projection run as they are."""
        for layer in self.videodit_blocks.layers:
            compile_methods(layer.self_attention, "_project")
            compile_methods(layer.mlp, "forward")
            compile_methods(layer, "_add")

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
