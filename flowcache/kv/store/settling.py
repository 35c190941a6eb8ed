"""Stores that hold finished chunks otherwise than new ones: where everything stands, and how it is read.

Shape letters: B batch, G key-value heads, E channels a head, T slots of a block (a chunk's, or a frame's), N slots
read, C capacity.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from flowcache.kv.store.base import KvStore, Sizes, StoreShape

Kind = Literal["key", "value"]
KINDS: tuple[Kind, Kind] = ("key", "value")


class Segment(NamedTuple):
    """Where the entries from a slot on are: how many, and in which page; or, of those that are settled, which codes."""

    length: int
    place: int
    settled: bool


@dataclass(kw_only=True)
class Settling(KvStore):
    """What is written stands in full precision, in pages of a block, until it is settled; then its codes alone stay.

    ``read`` puts a layer's entries in order into one buffer, the same for all layers, a block at a time; whoever reads
    the same layer once more finds them there. Memory beside the codes is that of the chunks that are not settled, and
    of this one layer.

    A selection (``keep``) leaves nothing but codes. It is made of entries as they come from their codes, in float32:
    on a grid whose groups are of one token they come to the same codes again.
    """

    settles: ClassVar[bool] = True

    # What a kind of codes is.

    @abstractmethod
    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """A block's entries [B, G, T, E], in the network's type or float32 -> what is held of them, the codes first;
        always of the same shapes and types."""

    @abstractmethod
    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        """What comes back of it, [B, G, T, E], in float32 or what holds it."""

    def room(self, encoded: Tensor, blocks: int) -> Tensor:
        """Where so many blocks' of a part of the codes are held: zeros [layers, blocks, ...]."""
        return encoded.new_zeros((self._shape.num_layers, blocks, *encoded.shape))

    def transfer(self, place: Tensor, entries: Tensor) -> None:
        """Copy entries or codes to where they are held or read, a place of their shape."""
        place.copy_(entries)

    # Where it stands.

    def allocate(self, shape: StoreShape) -> None:
        self._shape, self._block = shape, shape.block or shape.capacity
        of_all = math.ceil(shape.capacity / self._block)
        pages, settled = (
            of_all if slots is None else min(of_all, math.ceil(slots / self._block))
            for slots in (shape.open, shape.settled)
        )
        size = (shape.batch_size, shape.num_heads, self._block, shape.channels)
        options = {"dtype": shape.dtype, "device": shape.device}
        self._pages = torch.zeros(2, shape.num_layers, pages, *size, **options)
        blank = torch.zeros(size, **options)
        encoded = [self.encode(kind, blank) for kind in KINDS]
        self._block_bytes = sum(part.nbytes for parts in encoded for part in parts)
        self._codes = [[self.room(part, settled) for part in parts] for parts in encoded]
        self._read = torch.zeros(2, *size[:2], shape.capacity, shape.channels, **options)
        self.clear()

    def clear(self) -> None:
        layers, pages, settled = range(self._shape.num_layers), self._pages.shape[2], self._codes[0][0].shape[1]
        self._segments: list[dict[int, Segment]] = [{} for _ in layers]  # by first slot
        self._free = [{False: list(range(pages))[::-1], True: list(range(settled))[::-1]} for _ in layers]
        self._read_layer, self._read_starts = -1, set[int]()  # whose entries, and which, stand in the buffer

    def write(self, layer: int, slots: slice, key: Tensor, value: Tensor) -> None:
        for start in range(slots.start, slots.stop, self._block):
            length = min(self._block, slots.stop - start)
            own = slice(start - slots.start, start - slots.start + length)
            page = self._put(layer, start, length, settled=False)
            for kind, entries in enumerate((key, value)):
                self._pages[kind, layer, page, :, :, :length] = entries[:, :, own]

    def write_some(self, layer: int, slots: slice, places: Tensor, key: Tensor, value: Tensor) -> None:
        segment = self._segments[layer][slots.start]
        if segment.settled:
            raise RuntimeError(f"slots from {slots.start} on are settled, so that they are written as a whole or not")
        for kind, entries in enumerate((key, value)):
            self._pages[kind, layer, segment.place].index_copy_(2, places, entries)
        self._reread(layer, slots.start)

    def settle(self, layer: int, slots: slice) -> None:
        """See KvStore. Where all codes are taken, the entries stay as they are."""
        start, segment = slots.start, self._segments[layer].get(slots.start)
        if segment is None or segment.settled or not self._free[layer][True]:
            return
        entries = self._pages[:, layer, segment.place, :, :, : segment.length]
        self._put_codes(layer, start, entries)

    def read(self, layer: int, slots: slice) -> tuple[Tensor, Tensor]:
        self._turn_to(layer)
        end = slots.start
        for start, segment in self._within(layer, slots):
            if start > end:
                self._read[:, :, :, end:start].zero_()  # never written: finite, as all of a store's slots
            end = start + segment.length
            if start not in self._read_starts:
                for kind in range(2):
                    self.transfer(self._read[kind, :, :, start:end], self._entries(layer, kind, segment))
                self._read_starts.add(start)
        if end < slots.stop:
            self._read[:, :, :, end : slots.stop].zero_()
        return self._read[0, :, :, slots], self._read[1, :, :, slots]

    def keep(self, layer: int, indices: Tensor, length: int, held: int, value: Tensor | None = None) -> None:
        size, segments = indices.shape[-1], self._segments[layer]
        kept = []
        for kind in range(2):
            before = [self._entries(layer, kind, s).float() for _, s in self._within(layer, slice(0, length))]
            entries = torch.cat(before, dim=2)
            kept.append(entries.gather(2, indices[..., None].expand(*indices.shape, entries.shape[-1])))
        if value is not None:
            kept[1] = value.float()
        for start in [start for start in segments if start < length]:
            self._take_away(layer, start)
        self._segments[layer] = {start - (length - size): segment for start, segment in segments.items()}
        self._forget(layer)
        for start in range(0, size, self._block):
            self._put_codes(layer, start, [entries[:, :, start : start + self._block] for entries in kept])

    def copy(self, slots: slice, other: Self, others: slice) -> None:
        for layer in range(self._shape.num_layers):
            length, place, settled = other._segments[layer][others.start]
            own = self._put(layer, slots.start, length, settled)
            if settled:
                for codes, theirs in zip(self._codes, other._codes, strict=True):
                    for part, their in zip(codes, theirs, strict=True):
                        self.transfer(part[layer, own], their[layer, place])
            else:
                self._pages[:, layer, own] = other._pages[:, layer, place]

    # Sizes.

    @property
    def sizes(self) -> Sizes:
        return {
            "entries": self._pages.nbytes,
            "codes": sum(packed.nbytes for packed, *_ in self._codes),
            "scales": sum(part.nbytes for _, *beside in self._codes for part in beside),
            "read_buffer": self._read.nbytes,
        }

    @property
    def bits_a_number(self) -> float:
        shape = self._shape
        return 8 * self._block_bytes / (2 * shape.batch_size * shape.num_heads * self._block * shape.channels)

    def bytes_held(self, num_tokens: int, capacity: int) -> int:
        pages, codes = (self._shape.num_layers * size for size in (self._pages.shape[2], self._codes[0][0].shape[1]))
        free = {settled: sum(len(of_layer[settled]) for of_layer in self._free) for settled in (False, True)}
        sizes = self.sizes
        held = sizes["entries"] * (pages - free[False]) // pages
        all_codes = sum(part.nbytes for parts in self._codes for part in parts)
        return held + (all_codes * (codes - free[True]) // codes if codes else 0) + sizes["read_buffer"]

    # Parts.

    def _put(self, layer: int, start: int, length: int, settled: bool) -> int:
        """The place of the entries from ``start`` on, from now on: where they are, or a free one."""
        segment = self._segments[layer].get(start)
        if segment is None or segment.settled != settled:
            if segment is not None:
                self._take_away(layer, start)
            if not self._free[layer][settled]:
                raise RuntimeError(
                    f"{type(self).__name__} has no room for slots from {start} on: more chunks are in the making than "
                    "the schedule says; a policy must compute every chunk's first step"
                )
            segment = Segment(length, self._free[layer][settled].pop(), settled)
        self._segments[layer][start] = segment._replace(length=length)
        self._reread(layer, start)
        return segment.place

    def _turn_to(self, layer: int) -> None:
        """The buffer is this layer's from now on."""
        if self._read_layer != layer:
            self._read_layer, self._read_starts = layer, set()

    def _reread(self, layer: int, start: int) -> None:
        """The entries from ``start`` on are not what stands in the buffer any more."""
        if layer == self._read_layer:
            self._read_starts.discard(start)

    def _put_codes(self, layer: int, start: int, entries: Sequence[Tensor] | Tensor) -> None:
        """Settle keys and values, each [B, G, up to T, E]; a block that is not full ends in copies of its last entry,
        which are in no group's way."""
        length = entries[0].shape[2]
        place = self._put(layer, start, length, settled=True)
        for kind, codes, x in zip(KINDS, self._codes, entries, strict=True):
            if length < self._block:
                x = torch.cat([x, x[:, :, -1:].expand(-1, -1, self._block - length, -1)], dim=2)
            for part, encoded in zip(codes, self.encode(kind, x), strict=True):
                self.transfer(part[layer, place], encoded)

    def _take_away(self, layer: int, start: int) -> None:
        segment = self._segments[layer].pop(start)
        self._free[layer][segment.settled].append(segment.place)

    def _forget(self, layer: int) -> None:
        if layer == self._read_layer:
            self._read_starts = set()

    def _within(self, layer: int, slots: slice) -> Iterator[tuple[int, Segment]]:
        """The segments that hold slots, in order."""
        for start, segment in sorted(self._segments[layer].items()):
            if start < slots.stop and start + segment.length > slots.start:
                yield start, segment

    def _entries(self, layer: int, kind: int, segment: Segment) -> Tensor:
        """[B, G, length, E], as precisely as they are held."""
        length, place, settled = segment
        if not settled:
            return self._pages[kind, layer, place, :, :, :length]
        return self.decode(KINDS[kind], [part[layer, place] for part in self._codes[kind]])[:, :, :length]
