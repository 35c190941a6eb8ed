"""What a KV store is: it holds every layer's keys and values in slots, as precisely as it says.

Shape letters: B batch, G key-value heads, E channels a head, N slots written or read, K kept entries, C capacity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from flowcache.part import Part

# What memory is for: entries in the type that they are held in; codes; what codes are read by (scales, lowest numbers,
# ids and centroids); entries in host memory; a layer put in order to be read; what a selection remembers beside its
# entries.
KvUse = Literal["entries", "codes", "scales", "host", "read_buffer", "selection"]
Sizes = dict[KvUse, int]


@dataclass(frozen=True)
class StoreShape:
    """What a cache holds: layers, batch B, key-value heads G, slots C and channels E, and the network's type.

    A store that settles what is final works in blocks of T slots: a chunk's, or a frame's.

    Attributes:
        block: T; None is C.
        open: most slots at once that must be held as they were written; None is C.
        settled: most slots at once that may be settled; None is C.
    """

    num_layers: int
    batch_size: int
    num_heads: int
    capacity: int
    channels: int
    dtype: torch.dtype
    device: torch.device | str
    block: int | None = None
    open: int | None = None
    settled: int | None = None


@dataclass(kw_only=True)
class KvStore(Part, ABC):
    """One guidance branch's; ``allocate`` comes first, and nothing grows after it.

    Attributes:
        lossless: what is read is what was written, to the bit.
        settles: what is final is held otherwise from then on, less precisely or elsewhere, see ``settle``.
        newest_chunks, sink_chunks: finished chunks, the newest and the first ones of a window, that are not settled.
    """

    lossless: ClassVar[bool]
    settles: ClassVar[bool] = False
    newest_chunks: ClassVar[int] = 0
    sink_chunks: ClassVar[int] = 0

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

    @abstractmethod
    def write_some(self, layer: int, slots: slice, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Of a chunk's slots, which were written and are not settled, overwrite those that ``places`` (int64 [n]) says
        with key and value, each [B, G, n, E]."""

    @abstractmethod
    def read(self, layer: int, slots: slice) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, G, N, E] in the network's type: views where that is what is stored."""

    @abstractmethod
    def keep(self, layer: int, indices: Tensor, length: int, held: int, value: Tensor | None = None) -> None:
        """Of a layer's first ``length`` slots keep those at ``indices`` (int64 [B, G, K]), which move to the first K in
        that order; the entries up to ``held`` behind them move up. ``value`` [B, G, K, E] takes the place of the
        kept ones' values."""

    @abstractmethod
    def copy(self, slots: slice, other: Self, others: slice) -> None:
        """Take over every layer's entries from another branch's store of the same shape."""

    def settle(self, layer: int, slots: slice) -> None:
        """One block's entries are final: the store may hold them otherwise from now on."""

    def clear(self) -> None:
        """Nothing that was written is asked for again."""

    @property
    def corrects(self) -> bool:
        """Whether ``excess`` may say something: that is added to logits, which not every attention kernel takes."""
        return False

    def excess(self, layer: int, slots: slice, energy: Tensor) -> Tensor | None:
        """What rounding adds to slots' logits in the mean of exp(logit): float32 [B, G, N], None where it is nothing.

        ``energy`` is the mean square of every channel of the queries over E, float32 [B, G, E].
        """
        return None

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Bytes allocated, by what they are for."""

    @property
    @abstractmethod
    def bits_a_number(self) -> float:
        """Of a number that is settled (or, where nothing is, of any), with what its code is read by."""

    @property
    def nbytes(self) -> int:
        """Allocated, all together."""
        return sum(self.sizes.values())

    def bytes_held(self, num_tokens: int, capacity: int) -> int:
        """What ``num_tokens`` of the C = ``capacity`` slots take, and whatever the store works in."""
        return self.nbytes * num_tokens // capacity
