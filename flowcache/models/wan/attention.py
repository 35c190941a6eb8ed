"""Wan's transformer block: chunks attend to a span of chunks, through the shared cache or within the pack.

Shape letters: F frames in the pack, P tokens a frame, S = F*P, D hidden, H heads, E channels a head, L caption tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import TypeAlias

import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2TransformerBlock
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.cache import KvCache
from flowcache.kv.window import Sink
from flowcache.models.chunk_tokens import Subset
from flowcache.parallel import TokenSplit

Attention: TypeAlias = WanAttention | SkyReelsV2Attention  # the same modules, under two names
TransformerBlock: TypeAlias = WanTransformerBlock | SkyReelsV2TransformerBlock


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
    """One chunk of a pack: its position in the window, its tokens, and the first and last position that it attends to.

    Positions are chunks', or latent frames' where the cache counts those (WindowCache), which may have a ``sink`` that
    is attended to beside. The queries of one that ``scores`` choose what a full cache keeps. Of one with a ``subset``
    only those tokens run, and are counted.
    """

    position: int
    num_tokens: int
    first_key: int
    last_key: int
    scores: bool = False
    sink: Sink | None = None
    subset: Subset | None = None

    @property
    def keys(self) -> tuple[int, int] | tuple[int, int, Sink]:
        """What it attends to, in the words of its cache."""
        span = self.first_key, self.last_key
        return span if self.sink is None else (*span, self.sink)


@dataclass(frozen=True)
class Pack:
    """What every layer needs to know about the chunks that run together, oldest first.

    With a cache, every member's keys and values are written to it, and what it attends to is read from it; without,
    the pack is all there is, and members must be neighbours in order.
    """

    members: tuple[Member, ...]
    rope: tuple[Tensor, Tensor]  # cosine and sine, each [S, 1, E/2]
    cache: KvCache | None = None
    rows: Tensor | None = None  # int64 [S], each token's frame, where not all tokens of all members run
    split: TokenSplit | None = None  # where processes share the tokens out: rope is then of this one's

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each member's tokens begin, and where the last one's end."""
        return tuple(accumulate((member.num_tokens for member in self.members), initial=0))


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

    def __init__(self, block: TransformerBlock, layer: int) -> None:
        self.block, self.layer = block, layer

    def __call__(self, x: Tensor, modulation: Tensor, caption: CaptionKv, pack: Pack) -> Tensor:
        """Tokens [F, P, D], so that a frame's modulation [F, 6, D] is one vector a part -> tokens [F, P, D].

        With ``pack.rows`` tokens are [S, 1, D], each with its frame's modulation.
        """
        query, key, value = self._project(x, modulation, pack.rope, pack.rows)
        if pack.split is None:
            out = self._attend(query, key, value, pack)
        else:
            out = self._attend(*pack.split.to_heads(query, key, value), pack)
            out = pack.split.to_tokens(out, heads=1, tokens=2)
        x, query = self._between(x, out, modulation, pack.rows)
        out = F.scaled_dot_product_attention(query, caption.keys[self.layer], caption.values[self.layer])
        return self._finish(x, out, modulation, pack.rows)

    def _project(
        self, x: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens -> query, key and value of self-attention, each [1, H, S, E]."""
        attn, (shift, scale) = self.block.attn1, self._modulations(modulation, rows, 0, 2)
        x = (self.block.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        query = rotate(_heads(attn.norm_q(attn.to_q(x)), attn.heads), rope).transpose(1, 2)
        key = rotate(_heads(attn.norm_k(attn.to_k(x)), attn.heads), rope).transpose(1, 2)
        return query, key, _heads(attn.to_v(x), attn.heads).transpose(1, 2)

    def _between(self, x: Tensor, out: Tensor, modulation: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and their self-attention [1, H, S, E] -> tokens, and the query of cross-attention [1, H, S, E]."""
        (gate,) = self._modulations(modulation, rows, 2, 3)
        x = (x.float() + self.block.attn1.to_out[0](_tokens(out, x)) * gate).type_as(x)
        attn = self.block.attn2
        query = attn.norm_q(attn.to_q(self.block.norm2(x.float()).type_as(x)))
        return x, _heads(query, attn.heads).transpose(1, 2)

    def _finish(self, x: Tensor, out: Tensor, modulation: Tensor, rows: Tensor | None = None) -> Tensor:
        """Tokens and their cross-attention [1, H, S, E] -> tokens."""
        shift, scale, gate = self._modulations(modulation, rows, 3, 6)
        x = x + self.block.attn2.to_out[0](_tokens(out, x))
        inner = self.block.ffn((self.block.norm3(x.float()) * (1 + scale) + shift).type_as(x))
        return (x.float() + inner.float() * gate).type_as(x)

    def _modulations(self, modulation: Tensor, rows: Tensor | None, first: int, end: int) -> tuple[Tensor, ...]:
        """Parts first..end - 1 of the six."""
        parts = self.block.scale_shift_table[:, first:end] + modulation[:, first:end].float()
        return (parts if rows is None else parts[rows]).chunk(end - first, dim=1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        """query, key, value [1, H, S, E] -> [1, H, S, E]."""
        outputs, members, starts, cache = [], pack.members, pack.starts, pack.cache
        if cache is not None:
            for i, member in enumerate(members):
                if member.scores:
                    cache.score(self.layer, query[:, :, starts[i] : starts[i + 1]])
        # Neighbours in the pack that see the same keys share one call. Each group reads before the next one writes,
        # which may take the place of what has left its own window.
        for seen, group in groupby(range(len(members)), lambda i: members[i].keys):
            own = list(group)
            queries = _part(query, starts[own[0]], starts[own[-1] + 1])
            if cache is not None:
                for i in own:
                    span, member = slice(starts[i], starts[i + 1]), members[i]
                    if member.subset is None:
                        cache.write(self.layer, member.position, key[:, :, span], value[:, :, span])
                    else:
                        places = member.subset.places
                        cache.write_some(self.layer, member.position, places, key[:, :, span], value[:, :, span])
                outputs.append(cache.attend(self.layer, queries, *seen))
            else:
                (first, last), origin = seen, members[0].position
                span = starts[first - origin], starts[last + 1 - origin]
                outputs.append(F.scaled_dot_product_attention(queries, _part(key, *span), _part(value, *span)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _part(x: Tensor, start: int, end: int) -> Tensor:
    """Some tokens [1, H, T, E] of x [1, H, S, E], by strides that do not tell how many S are: cuDNN builds a plan for
    each that it has not met."""
    return x[0, :, start:end][None]


def caption_kv(attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded text [1, L, D] -> one layer's key and value, each [1, H, L, E]."""
    key, value = attn.norm_k(attn.to_k(text)), attn.to_v(text)
    return _heads(key, attn.heads).transpose(1, 2), _heads(value, attn.heads).transpose(1, 2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[F, P, D] -> [1, S, H, E]."""
    return x.reshape(1, -1, heads, x.shape[-1] // heads)


def _tokens(out: Tensor, like: Tensor) -> Tensor:
    """[1, H, S, E] -> [F, P, D]."""
    return out.transpose(1, 2).reshape(like.shape)
