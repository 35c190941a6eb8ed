"""Finished chunks' keys and values in host memory, as they are, and a layer ahead of its attention on the device again.

For cards that hold the network but not the cache of a long video. A layer's attention reads from one of two buffers on
the device, while a stream of its own copies the next layer's finished chunks into the other. What is being denoised
stays on the device. On a CPU, where host and device are one, it is the same without a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.kv.store.base import Sizes, StoreShape
from flowcache.kv.store.settling import Kind, Settling


@dataclass(kw_only=True)
class HostMemory(Settling):
    """The memory is pinned, so that copies run beside kernels; torch takes it in powers of two."""

    lossless: ClassVar[bool] = True

    def allocate(self, shape: StoreShape) -> None:
        self._on_gpu = torch.device(shape.device).type == "cuda"
        self._stream = torch.cuda.Stream(shape.device) if self._on_gpu else None
        super().allocate(shape)
        self._ahead = torch.zeros_like(self._read)

    def clear(self) -> None:
        super().clear()
        self._ahead_layer, self._ahead_starts = -1, set[int]()  # as of the buffer that is read

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        return [x.to(self._shape.dtype)]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].to(self._shape.device, non_blocking=True)

    def room(self, encoded: Tensor, blocks: int) -> Tensor:
        if not self._on_gpu:
            return super().room(encoded, blocks)
        size = (self._shape.num_layers, blocks, *encoded.shape)
        return torch.zeros(size, dtype=encoded.dtype, pin_memory=True)

    def transfer(self, place: Tensor, entries: Tensor) -> None:
        """By way of the device, in the order of its work: the host does not wait, nor reads what is still to come."""
        place.copy_(entries.to(self._shape.device, non_blocking=True), non_blocking=True)

    @property
    def sizes(self) -> Sizes:
        host = sum(part.nbytes for parts in self._codes for part in parts)
        return {"entries": self._pages.nbytes, "host": host, "read_buffer": self._read.nbytes + self._ahead.nbytes}

    def _turn_to(self, layer: int) -> None:
        """The buffers change places, and the one that was read is filled with the next layer's finished chunks."""
        if self._read_layer == layer:
            return
        self._wait()
        before = self._read, self._read_layer, self._read_starts
        self._read, self._read_layer, self._read_starts = self._ahead, self._ahead_layer, self._ahead_starts
        self._ahead, self._ahead_layer, self._ahead_starts = before
        super()._turn_to(layer)
        self._fetch((layer + 1) % self._shape.num_layers)

    def _fetch(self, layer: int) -> None:
        if self._ahead_layer != layer:
            self._ahead_layer, self._ahead_starts = layer, set()
        if self._stream is not None:
            # What was read from the buffer, and what is on its way to the host, is enqueued before.
            self._stream.wait_stream(torch.cuda.current_stream(self._shape.device))
            self._ahead.record_stream(self._stream)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for start, segment in self._segments[layer].items():
                if segment.settled and start not in self._ahead_starts:
                    for kind in range(2):
                        place = self._ahead[kind, :, :, start : start + segment.length]
                        self.transfer(place, self._entries(layer, kind, segment))
                    self._ahead_starts.add(start)

    def _wait(self) -> None:
        """Kernels from now on see what was fetched."""
        if self._stream is not None:
            torch.cuda.current_stream(self._shape.device).wait_stream(self._stream)

    def _put_codes(self, layer: int, start: int, entries: Sequence[Tensor] | Tensor) -> None:
        self._wait()  # what is fetched may come from where these go
        super()._put_codes(layer, start, entries)

    def _reread(self, layer: int, start: int) -> None:
        super()._reread(layer, start)
        if layer == self._ahead_layer:
            self._ahead_starts.discard(start)

    def _forget(self, layer: int) -> None:
        super()._forget(layer)
        if layer == self._ahead_layer:
            self._ahead_starts = set()
