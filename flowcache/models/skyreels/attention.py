"""SkyReels-V2's transformer block: chunks attend to a span of chunks, through the shared cache or within the pack.

Shape letters: F frames in the pack, P tokens a frame, T tokens a chunk, S = F*P, D hidden, H heads, E channels a head,
L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2TransformerBlock
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.cache import KvCache


@dataclass(frozen=True)
class CaptionKv:
    """One caption's cross-attention keys and values in every layer, each [1, H, L, E]; constant over all steps."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_tokens(self) -> int:
        return self.keys[0].shape[2]


@dataclass(frozen=True)
class Member:
    """One chunk of a pack: its position in the window, and the first and last position that it attends to.

    The queries of one that ``scores`` choose what a full cache keeps.
    """

    position: int
    first_key: int
    last_key: int
    scores: bool = False


@dataclass(frozen=True)
class Pack:
    """What every layer needs to know about the chunks that run together.

    With a cache, every member's keys and values are written to it, and what it attends to is read from it; without,
    the pack is all there is, and members must be neighbours in order.
    """

    members: tuple[Member, ...]
    tokens_per_chunk: int
    rope: tuple[Tensor, Tensor]  # cosine and sine, each [S, 1, E/2]
    cache: KvCache | None = None


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [1, S, H, E]: elements 2i and 2i + 1 are a pair."""
    cosine, sine = rope
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1).flatten(-2).to(x.dtype)


class Block:
    """One of diffusers' transformer blocks, cut where tokens meet others: between the cuts each is by itself.

    Args:
        block: its modules and weights.
        layer: its index.
    """

    def __init__(self, block: SkyReelsV2TransformerBlock, layer: int) -> None:
        self.block, self.layer = block, layer

    def __call__(self, x: Tensor, modulation: Tensor, caption: CaptionKv, pack: Pack) -> Tensor:
        """Tokens [F, P, D], so that a frame's modulation [F, 6, D] is one vector a part -> tokens [F, P, D]."""
        query, key, value = self._project(x, modulation, pack.rope)
        x, query = self._between(x, self._attend(query, key, value, pack), modulation)
        out = F.scaled_dot_product_attention(query, caption.keys[self.layer], caption.values[self.layer])
        return self._finish(x, out, modulation)

    def _project(self, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens -> query, key and value of self-attention, each [1, H, S, E]."""
        attn, (shift, scale, *_) = self.block.attn1, self._modulations(modulation)
        x = (self.block.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        query = rotate(_heads(attn.norm_q(attn.to_q(x)), attn.heads), rope).transpose(1, 2)
        key = rotate(_heads(attn.norm_k(attn.to_k(x)), attn.heads), rope).transpose(1, 2)
        return query, key, _heads(attn.to_v(x), attn.heads).transpose(1, 2)

    def _between(self, x: Tensor, out: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their self-attention [1, H, S, E] -> tokens, and the query of cross-attention [1, H, S, E]."""
        _, _, gate, *_ = self._modulations(modulation)
        x = (x.float() + self.block.attn1.to_out[0](_tokens(out, x)) * gate).type_as(x)
        attn = self.block.attn2
        query = attn.norm_q(attn.to_q(self.block.norm2(x.float()).type_as(x)))
        return x, _heads(query, attn.heads).transpose(1, 2)

    def _finish(self, x: Tensor, out: Tensor, modulation: Tensor) -> Tensor:
        """Tokens and their cross-attention [1, H, S, E] -> tokens."""
        *_, shift, scale, gate = self._modulations(modulation)
        x = x + self.block.attn2.to_out[0](_tokens(out, x))
        inner = self.block.ffn((self.block.norm3(x.float()) * (1 + scale) + shift).type_as(x))
        return (x.float() + inner.float() * gate).type_as(x)

    def _modulations(self, modulation: Tensor) -> tuple[Tensor, ...]:
        return (self.block.scale_shift_table + modulation.float()).chunk(6, dim=1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        """query, key, value [1, H, S, E] -> [1, H, S, E]."""
        tokens = pack.tokens_per_chunk
        if pack.cache is not None:
            slices = [slice(i * tokens, (i + 1) * tokens) for i in range(len(pack.members))]
            for member, own in zip(pack.members, slices, strict=True):
                if member.scores:
                    pack.cache.score(self.layer, query[:, :, own])
            for member, own in zip(pack.members, slices, strict=True):
                pack.cache.write(self.layer, member.position, key[:, :, own], value[:, :, own])
        outputs, start = [], 0
        # Neighbours in the pack that see the same keys share one call.
        for (first, last), members in groupby(pack.members, lambda member: (member.first_key, member.last_key)):
            end, mask = start + len(list(members)) * tokens, None
            if pack.cache is not None:
                keys, values = pack.cache.read(self.layer, first, last)
                mask = pack.cache.mask(self.layer, first, last)
            else:
                origin = pack.members[0].position
                span = slice((first - origin) * tokens, (last + 1 - origin) * tokens)
                keys, values = key[:, :, span], value[:, :, span]
            outputs.append(F.scaled_dot_product_attention(query[:, :, start:end], keys, values, attn_mask=mask))
            start = end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def caption_kv(attn: SkyReelsV2Attention, text: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded text [1, L, D] -> one layer's key and value, each [1, H, L, E]."""
    key, value = attn.norm_k(attn.to_k(text)), attn.to_v(text)
    return _heads(key, attn.heads).transpose(1, 2), _heads(value, attn.heads).transpose(1, 2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[F, P, D] -> [1, S, H, E]."""
    return x.reshape(1, -1, heads, x.shape[-1] // heads)


def _tokens(out: Tensor, like: Tensor) -> Tensor:
    """[1, H, S, E] -> [F, P, D]."""
    return out.transpose(1, 2).reshape(like.shape)
