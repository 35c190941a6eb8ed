"""Keys and values of finished chunks in 8-bit floating point (E4M3), where torch has it: one scale a chunk and head.

Shape letters: B batch, G key-value heads, T tokens of a chunk, E channels a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind

LARGEST = 448.0  # that E4M3 holds


@dataclass(kw_only=True)
class Float8(Quantised):
    """Three bits of mantissa: what is off is a share of the number itself, too little to correct logits for."""

    correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(torch, "float8_e4m3fn"):
            raise ValueError(f"torch {torch.__version__} has no 8-bit floating point; choose kv/store=int8")

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """E4M3 [B, G, T, E], and float32 scales [B, G, 1, 1] that bring the largest number to the largest there is."""
        scale = x.float().abs().amax((-2, -1), keepdim=True) / LARGEST
        scaled = x.float() / torch.where(scale == 0, torch.ones_like(scale), scale)
        return [scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        codes, scale = parts
        return codes.float() * scale
