"""Keys and values as the network gives them; read as views, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.kv.store.base import KvStore, Sizes, StoreShape


@dataclass(kw_only=True)
class FullPrecision(KvStore):
    lossless: ClassVar[bool] = True

    def stored_type(self, dtype: torch.dtype) -> torch.dtype:
        """What the network's type is stored as."""
        return dtype

    def allocate(self, shape: StoreShape) -> None:
        size = (shape.num_layers, shape.batch_size, shape.num_heads, shape.capacity, shape.channels)
        self._keys = torch.zeros(size, dtype=self.stored_type(shape.dtype), device=shape.device)
        self._values = torch.zeros_like(self._keys)

    def write(self, layer: int, slots: slice, key: Tensor, value: Tensor) -> None:
        self._keys[layer, :, :, slots] = key
        self._values[layer, :, :, slots] = value

    def read(self, layer: int, slots: slice) -> tuple[Tensor, Tensor]:
        return self._keys[layer, :, :, slots], self._values[layer, :, :, slots]

    def keep(self, layer: int, indices: Tensor, length: int, held: int, value: Tensor | None = None) -> None:
        size = indices.shape[-1]
        for entries, merged in ((self._keys[layer], None), (self._values[layer], value)):
            index = indices[..., None].expand(*indices.shape, entries.shape[-1])
            entries[:, :, :size] = entries[:, :, :length].gather(2, index) if merged is None else merged
            # The chunks behind move up; a copy, since the ranges may overlap.
            entries[:, :, size : size + held - length] = entries[:, :, length:held].clone()

    def copy(self, slots: slice, other: FullPrecision, others: slice) -> None:
        self._keys[:, :, :, slots] = other._keys[:, :, :, others]
        self._values[:, :, :, slots] = other._values[:, :, :, others]

    @property
    def sizes(self) -> Sizes:
        return {"entries": self._keys.nbytes + self._values.nbytes}

    @property
    def bits_a_number(self) -> float:
        return 8 * self._keys.itemsize
