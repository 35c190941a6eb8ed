"""MAGI-1's attention: chunks attend to a span of chunks through the shared cache, and to their captions in parallel.

Shape letters: B batch, N chunks in the pack, T tokens a chunk, S = N*T, D hidden, H query heads, G key-value heads,
E channels a head, L caption tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowcache.kv.cache import KvCache
from flowcache.kv.rotary import RotaryPairs
from flowcache.models.chunk_tokens import Subset
from flowcache.models.magi.config import PROJECTION_SLICES, DitConfig
from flowcache.parallel import TokenSplit


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
    attends to, and ``last_key_chunk`` the newest, by default itself. An ``alone`` member attends to itself only and
    leaves the cache untouched. The queries of one that ``scores`` choose what a full cache keeps. Of one with a
    ``subset`` only those tokens run.
    """

    position: int
    caption: CaptionKv
    first_key_chunk: int = 0
    alone: bool = False
    scores: bool = False
    last_key_chunk: int | None = None
    subset: Subset | None = None

    @property
    def keys(self) -> tuple[int, int]:
        """The first and the last chunk that it attends to."""
        return self.first_key_chunk, self.position if self.last_key_chunk is None else self.last_key_chunk


@dataclass(frozen=True)
class Pack:
    """What every layer needs to know about the members, worked out once a forward."""

    members: tuple[Member, ...]
    rope: tuple[Tensor, Tensor]  # see LearnedRotary; each [S, 1, E]
    cache: KvCache | None
    slices: tuple[slice, ...]  # of each member's tokens
    rows: Tensor | None = None  # int64 [S], each token's member, where not all tokens of all members run
    split: TokenSplit | None = None  # where processes share the tokens out: rope is then of this one's

    @cached_property
    def own(self) -> Pack:
        """The same of this process's tokens alone."""
        return self if self.split is None else replace(self, slices=self.split.slices)


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


class LearnedRotary(nn.Module):
    """Rotary angles from learned bands shared by time, height and width; a quarter of each head stays unrotated."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        num_bands = config.hidden_size // config.num_attention_heads // 8
        self.bands = nn.Parameter(10000.0 ** -(torch.arange(num_bands, dtype=torch.float32) / num_bands))

    def forward(self, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Absolute frame indices [F] and the token grid -> factors of ``rotate``, each [F*height*width, 1, E].

        E is 8 * bands: [cos | cos | 1] for the elements themselves, [-sin | sin | 0] for their partners.
        """
        scale = math.sqrt(height * width / 256)
        axes = [frames.float(), *(self._centred(n, n / scale) for n in (height, width))]
        grid = torch.stack(torch.meshgrid(*(axis.to(self.bands.device) for axis in axes), indexing="ij"), dim=-1)
        angles = (grid[..., None] * self.bands).reshape(-1, 1, 3 * len(self.bands))
        cosine, sine = angles.cos(), angles.sin()
        rest = torch.ones_like(angles[..., : 2 * len(self.bands)])
        return torch.cat([cosine, cosine, rest], dim=-1), torch.cat([-sine, sine, 0 * rest], dim=-1)

    def pairs(self, height: int, width: int) -> RotaryPairs:
        """The same angles as numbers, of a token grid and a video of any length."""
        bands = self.bands.detach().float()
        scale, num_bands = math.sqrt(height * width / 256), len(bands)
        rows, columns = ((self._centred(n, n / scale).to(bands.device)[:, None] * bands) for n in (height, width))
        shape = (height, width, num_bands)
        still = bands.new_zeros(shape)
        space = torch.cat([still, rows[:, None].expand(shape), columns[None].expand(shape), still], dim=-1)
        channels = torch.arange(8 * num_bands, device=bands.device)
        turned, rest = channels[: 6 * num_bands].unflatten(0, (2, -1)), channels[6 * num_bands :].unflatten(0, (2, -1))
        first, second = torch.cat([turned, rest], dim=-1)
        time = torch.cat([bands, bands.new_zeros(3 * num_bands)])
        return RotaryPairs(first, second, time, space.flatten(0, 1))

    @staticmethod
    def _centred(size: int, reference: float) -> Tensor:
        """Positions centred on zero, stretched so that their ends meet those of the reference size."""
        centred = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        return centred if size == 1 else centred / (size - 1) * (reference - 1)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, S, heads, E]: element i pairs with i + 3E/8; the last quarter passes through."""
    own, partners = rope
    width = x.shape[-1] * 3 // 8
    first, second, rest = x.split([width, width, x.shape[-1] - 2 * width], dim=-1)
    return torch.addcmul(x * own, torch.cat([second, first, rest], dim=-1), partners)


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

    def forward(self, x: Tensor, pack: Pack) -> Tensor:
        """Tokens [B, S, D] -> projected attention [B, S, D]; writes the fresh keys and values into the cache."""
        query, key, value, cross_query = self._project(x, pack.rope)
        if pack.split is None:
            self_out = self._self_attention(query, key, value, pack)
        else:
            self_out = self._self_attention(*pack.split.to_heads(query, key, value), pack)
            self_out = pack.split.to_tokens(self_out, heads=2, tokens=1)
        return self._join(self_out, self._cross_attention(cross_query, pack.own))

    def _project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [B, S, D] -> query, key, value and cross-attention query, queries folded."""
        normed = self.linear_qkv.layer_norm(x)
        query = self.linear_qkv.q(normed).unflatten(-1, (self.num_heads, self.channels))
        key = self.linear_qkv.k(normed).unflatten(-1, (self.num_groups, self.channels))
        value = self.linear_qkv.v(normed).unflatten(-1, (self.num_groups, self.channels)).transpose(1, 2)
        query = self._fold(rotate(self.q_layernorm(query.float()), rope).to(value.dtype))
        key = rotate(self.k_layernorm(key.float()), rope).to(value.dtype).transpose(1, 2)
        cross_query = self.linear_qkv.qx(normed).unflatten(-1, (self.num_heads, self.channels))
        return query, key, value, self._fold(self.q_layernorm_xattn(cross_query))

    def _join(self, self_out: Tensor, cross_out: Tensor) -> Tensor:
        """Both attentions' outputs [B, S, H*E] -> float32 [B, S, D]."""
        joined = torch.stack([out.unflatten(-1, (PROJECTION_SLICES, -1)) for out in (self_out, cross_out)], dim=-2)
        joined, weight = joined.flatten(-3), self.linear_proj.weight
        # The official model runs this projection in float32 whatever the parameters' type.
        if joined.is_cuda and joined.dtype == weight.dtype == torch.bfloat16:
            # Products of bfloat16 are exact in float32, in which tensor cores add them up: the same, ten times faster.
            return torch.mm(joined.flatten(0, 1), weight.mT, out_dtype=torch.float32).unflatten(0, joined.shape[:2])
        return F.linear(joined.float(), weight.float())

    def _self_attention(self, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        if pack.cache is not None:
            for member, tokens in zip(pack.members, pack.slices, strict=True):
                if member.scores:
                    pack.cache.score(self.layer, self._unfold(query, tokens, pack))
            for member, tokens in zip(pack.members, pack.slices, strict=True):
                if not member.alone:
                    own = key[:, :, tokens], value[:, :, tokens]
                    if member.subset is None:
                        pack.cache.write(self.layer, member.position, *own)
                    else:
                        pack.cache.write_some(self.layer, member.position, member.subset.places, *own)
        seen, queries = [], query.unflatten(2, (pack.slices[-1].stop, -1))
        for index, (member, tokens) in enumerate(zip(pack.members, pack.slices, strict=True)):
            if member.alone:
                seen.append((key[:, :, tokens].contiguous(), value[:, :, tokens].contiguous(), None))
            elif pack.cache is not None:
                span, own = (self.layer, *member.keys), queries[:, :, tokens].flatten(2, 3)
                seen.append((*pack.cache.read(*span), pack.cache.mask(*span, own)))
            else:
                # Without a cache the pack itself is the history: members stand in order of position, without gaps.
                back = min(index, member.position - member.first_key_chunk)
                span = slice(pack.slices[index - back].start, tokens.stop)
                seen.append((key[:, :, span], value[:, :, span], None))
        return self._attend(query, seen, pack)

    def _cross_attention(self, query: Tensor, pack: Pack) -> Tensor:
        captions = [member.caption for member in pack.members]
        return self._attend(query, [(c.keys[self.layer], c.values[self.layer], c.mask) for c in captions], pack)

    def _fold(self, query: Tensor) -> Tensor:
        """[B, S, H, E] -> [B, G, S*H/G, E].

        The query heads that share a key-value head become further queries of it: no copy of keys or values.
        """
        return query.unflatten(2, (self.num_groups, -1)).transpose(1, 2).flatten(2, 3)

    def _unfold(self, query: Tensor, tokens: slice, pack: Pack) -> Tensor:
        """Folded queries of some tokens -> [B, H, T, E]."""
        return query.unflatten(2, (pack.slices[-1].stop, -1))[:, :, tokens].transpose(2, 3).flatten(1, 2)

    def _attend(self, query: Tensor, seen: list[tuple[Tensor, Tensor, Tensor | None]], pack: Pack) -> Tensor:
        """Each member's folded queries against what it sees (key, value [B, G, L, E], mask) -> [B, S, H*E].

        Contiguous on CUDA, so that strides do not depend on who else is in the pack: cuDNN builds a plan for new ones.
        """
        queries = query.unflatten(2, (pack.slices[-1].stop, -1))
        own = [queries[:, :, tokens].flatten(2, 3) for tokens in pack.slices]
        outputs = [
            F.scaled_dot_product_attention(each.contiguous() if each.is_cuda else each, key, value, attn_mask=mask)
            for each, (key, value, mask) in zip(own, seen, strict=True)
        ]
        folded = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        return folded.unflatten(2, (pack.slices[-1].stop, -1)).transpose(1, 2).flatten(2)
