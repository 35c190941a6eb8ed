"""KIVI (arXiv 2402.02750): keys in groups of a channel's tokens, values in groups of a token's channels.

Source: jy-yuan/KIVI, quant/new_pack.py. Shape letters: B batch, G key-value heads, T tokens of a chunk, E channels a
head, R groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flowcache.kv.store.grid import BITS, affine_variance, group_size, on_affine_grid, pack, unpack
from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind
from flowcache.options import check_counts


@dataclass(kw_only=True)
class Kivi(Quantised):
    """Its newest tokens in full precision are here the chunks being denoised and ``newest_chunks``.

    A selection leaves other tokens in a group of keys, so that these are rounded anew; published is none.

    Attributes:
        bits: of a code.
        group: tokens (of keys) and channels (of values) that share a lowest number and a scale, at most; both are held
            in the network's type, in which they are worked out.
    """

    bits: int
    group: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits!r} must be one of {', '.join(map(str, BITS))}")
        check_counts(group=self.group)

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """Codes uint8 [B, G, E, R, bytes] of keys or [B, G, T, R, bytes] of values; scale and lowest without bytes."""
        x = x.to(self._shape.dtype)
        x = x.mT if kind == "key" else x
        groups = x.unflatten(-1, (-1, group_size(self.group, x.shape[-1])))
        codes, scale, lowest = on_affine_grid(groups, self.bits, x.dtype)
        return [pack(codes, self.bits), scale[..., 0], lowest[..., 0]]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        packed, scale, lowest = parts
        size = (self._block if kind == "key" else self._shape.channels) // scale.shape[-1]
        codes = unpack(packed, self.bits, size).to(scale.dtype)
        x = (codes * scale[..., None] + lowest[..., None]).flatten(-2)
        return x.mT if kind == "key" else x

    def logit_noise(self, parts: Sequence[Tensor], energy: Tensor) -> Tensor:
        group = self._block // parts[1].shape[-1]
        of_groups = (affine_variance(parts[1], group) * energy[..., None]).sum(2)
        return of_groups.repeat_interleave(group, dim=-1)
