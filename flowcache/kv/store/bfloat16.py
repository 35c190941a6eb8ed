"""Keys and values in 16 bits, for a network that runs in 32: half the memory, 8 bits of mantissa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.kv.store.base import StoreShape
from flowcache.kv.store.full_precision import FullPrecision


@dataclass(kw_only=True)
class Bfloat16(FullPrecision):
    lossless: ClassVar[bool] = False

    def stored_type(self, dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16

    def allocate(self, shape: StoreShape) -> None:
        super().allocate(shape)
        self._dtype = shape.dtype

    def read(self, layer: int, slots: slice) -> tuple[Tensor, Tensor]:
        key, value = super().read(layer, slots)
        return key.to(self._dtype), value.to(self._dtype)
