"""What a KV store is: it holds every layer's keys and values in slots, as precisely as it says.

Shape letters: B batch, G key-value heads, E channels a head, N slots written or read, K kept entries, C capacity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from flowcache.part import Part


@dataclass(frozen=True)
class StoreShape:
    """What a cache holds: layers, batch B, key-value heads G, slots C and channels E, and the network's type."""

    num_layers: int
    batch_size: int
    num_heads: int
    capacity: int
    channels: int
    dtype: torch.dtype
    device: torch.device | str


@dataclass(kw_only=True)
class KvStore(Part, ABC):
    """One guidance branch's; ``allocate`` comes first, and nothing grows after it.

    Attributes:
        lossless: what is read is what was written, to the bit.
    """

    lossless: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self, "lossless", None), bool):
            raise TypeError(f"{type(self).__name__} must say by lossless whether it gives back what was written")

    @abstractmethod
    def allocate(self, shape: StoreShape) -> None:
        """Make the buffers, of zeros: a slot read before it is written is then a finite key, as in the goldens."""

    @abstractmethod
    def write(self, layer: int, slots: slice, key: Tensor, value: Tensor) -> None:
        """Overwrite slots with key and value, each [B, G, N, E]."""

    def write_some(self, layer: int, slots: slice, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Overwrite those of the slots that ``places`` (int64 [n]) says, with key and value, each [B, G, n, E]."""
        whole = (
            held.index_copy(2, places, new) for held, new in zip(self.read(layer, slots), (key, value), strict=True)
        )
        self.write(layer, slots, *whole)

    @abstractmethod
    def read(self, layer: int, slots: slice) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, G, N, E] in the network's type: views where that is what is stored."""

    @abstractmethod
    def keep(self, layer: int, indices: Tensor, length: int, held: int) -> None:
        """Of a layer's first ``length`` slots keep those at ``indices`` (int64 [B, G, K]), which move to the first K in
        that order; the entries up to ``held`` behind them move up."""

    @abstractmethod
    def copy(self, slots: slice, other: Self, others: slice) -> None:
        """Take over every layer's entries from another branch's store of the same shape."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Allocated, all together."""
