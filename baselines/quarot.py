"""QuaRot's rotation (arXiv 2404.00456) and rounding in blocks of tokens, as a study of causal Wan has them.

Source: suraj-ranganath/kv-quant-longhorizon (arXiv 2603.27469): the methods "quarot" and "rtn". Shape letters: B batch,
G key-value heads, T tokens of a chunk, E channels a head, R blocks of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.store.base import StoreShape
from flowcache.kv.store.grid import BITS, on_symmetric_grid, pack, unpack
from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind
from flowcache.options import check_counts, check_switches


@dataclass(kw_only=True)
class QuaRot(Quantised):
    """Every channel of a block of tokens is rounded to a symmetric grid with a scale of its own, held in float16.

    Attributes:
        bits: of a code; of 2 bits, only -1, 0 and 1 occur.
        block_tokens: that share a scale in every channel.
        rotation: turn the channels of a token by a Hadamard matrix before, so that none stands out; false is plain
            rounding ("RTN").
    """

    bits: int
    block_tokens: int = 16
    rotation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits!r} must be one of {', '.join(map(str, BITS))}")
        check_counts(block_tokens=self.block_tokens)
        check_switches(rotation=self.rotation)

    def allocate(self, shape: StoreShape) -> None:
        self._turn = hadamard(shape.channels).to(shape.device)
        super().allocate(shape)

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """Codes uint8 [B, G, E, R, bytes] and scales float16 [B, G, E, R]; a last block that is short ends in zeros."""
        x = x.float() @ self._turn if self.rotation else x.float()
        blocks = F.pad(x.mT, (0, -x.shape[2] % self.block_tokens)).unflatten(-1, (-1, self.block_tokens))
        codes, scale = on_symmetric_grid(blocks, self.bits)
        return [pack((codes + 2 ** (self.bits - 1)).to(torch.uint8), self.bits), scale[..., 0].half()]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        packed, scale = parts
        codes = unpack(packed, self.bits, self.block_tokens).float() - 2 ** (self.bits - 1)
        x = (codes * scale[..., None].float()).flatten(-2)[..., : self._block].mT
        return x @ self._turn.mT if self.rotation else x

    def logit_noise(self, parts: Sequence[Tensor], energy: Tensor) -> Tensor:
        """See Quantised. Rotated back, every channel is off by as much as all are in the mean."""
        variance = parts[1].float().square() / 12
        if self.rotation:
            energy = energy.mean(-1, keepdim=True).expand_as(energy)
        of_blocks = (variance * energy[..., None]).sum(2)
        return of_blocks.repeat_interleave(self.block_tokens, dim=-1)[..., : self._block]


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix, float32 [size, size], of numbers of one absolute value; where the size is no power of two,
    such blocks along the diagonal."""
    block = size & -size
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.block_diag(*[matrix / math.sqrt(block)] * (size // block))
