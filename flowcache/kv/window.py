"""A cache that counts in latent frames and forgets the oldest: a sink that stays, and a ring of the newest frames.

Shape letters: B batch, G key-value heads, E channels a head, T tokens a frame, N tokens written, L tokens read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowcache.kv.cache import KvCache
from flowcache.kv.correction import corrected
from flowcache.kv.policy import KvPolicy
from flowcache.kv.store.base import Sizes

Sink = Literal["own", "near"]  # where a sink is read: at its own time, or right before the first other frame
Later = Callable[[Tensor, int], Tensor]  # rotated keys [B, G, N, E], as if they stood so many frames later


class WindowCache(KvCache):
    """Its chunks are single latent frames, and any number of them is written at once.

    The sink's frames take the first slots and frame p of the others slot s + (p - s) mod r, where s are the sink's and
    r the ring's frames; so a new frame takes the place of the oldest, at its first write, and nothing is ever moved.
    Attention does not mind the order of keys: frames that fill neighbouring slots, as a whole window always does, are
    read as a view. Others, and a sink that is read at another time, are gathered in one buffer, the same for all
    layers.

    Args:
        num_layers, num_heads, head_channels: as of KvCache.
        tokens_per_frame: T.
        num_frames: that are held at once, the sink's among them.
        sink_frames: that stay.
        gathered_frames: most frames that are read other than as a view; 0 makes no buffer.
        later: turns the keys of a sink that is read "near".
        batch_size, dtype, device, policy: as of KvCache; a policy with a budget is refused, since frames that leave
            the window are gone as they are. Raises ValueError.
        open_chunks: as of KvCache.
        chunk_frames: of a chunk, in which stores count.
    """

    spare: ClassVar[int] = 1  # through which frames pass that a new prompt encodes anew

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        tokens_per_frame: int,
        num_frames: int,
        sink_frames: int = 0,
        gathered_frames: int = 0,
        later: Later | None = None,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        policy: KvPolicy | None = None,
        open_chunks: int | None = None,
        chunk_frames: int = 1,
    ) -> None:
        if policy is not None and policy.budget is not None:
            raise ValueError(
                f"budget={policy.budget!r} chooses among all finished chunks, and a window of {num_frames} frames has "
                "forgotten the oldest; choose one of them: budget null, or no window"
            )
        if not 0 <= sink_frames < num_frames:
            raise ValueError(f"a window of {num_frames} frames cannot hold a sink of {sink_frames} and new frames")
        super().__init__(
            num_layers,
            num_heads,
            head_channels,
            tokens_per_frame,
            num_frames,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            policy=policy,
            open_chunks=open_chunks,
            spans_per_chunk=chunk_frames,
        )
        self._finished_end = 0  # frames before it are finished
        self._sink, self._ring, self._later = sink_frames, num_frames - sink_frames, later
        self._first_of_sink, self._ends = 0, [0] * num_layers  # in every layer, the end of the newest frames
        size = (2, batch_size, num_heads, gathered_frames * tokens_per_frame, head_channels)
        self._gathered = torch.empty(size, dtype=dtype, device=device)

    def write(self, layer: int, chunk: int, key: Tensor, value: Tensor) -> None:
        """Overwrite the frames from ``chunk`` on with key and value, each [B, G, N, E].

        Of more frames than the ring holds, the newest are kept, and those of the sink.
        """
        first, tokens = chunk, self.tokens_per_chunk
        end = first + key.shape[2] // tokens
        sink_end = self._first_of_sink + self._sink
        spans = [(first, first - self._first_of_sink, max(0, min(end, sink_end) - first))]
        frame = max(first, sink_end, end - self._ring)
        self._check_held(layer, frame, end)
        self._ends[layer] = max(self._ends[layer], end)
        for start, length in self._ring_spans(frame, end):
            spans.append((frame, start, length))
            frame += length
        for frame, start, length in spans:
            if length > 0:
                own = slice((frame - first) * tokens, (frame - first + length) * tokens)
                self._write_span(layer, frame, start, key[:, :, own], value[:, :, own])

    def _write_span(self, layer: int, frame: int, start: int, key: Tensor, value: Tensor) -> None:
        """Frames from ``frame`` on into places from ``start`` on; frame by frame where a store settles those that are
        finished, so that not all of them need room as they are."""
        length = key.shape[2] // self.tokens_per_chunk
        if not self._store.settles:
            self._store.write(layer, self._tokens(start, length), key, value)
            return
        for i in range(length):
            own = self._tokens(i, 1)
            self._store.write(layer, self._tokens(start + i, 1), key[:, :, own], value[:, :, own])
            if frame + i < self._finished_end:
                self._settle(layer, frame + i)

    def read(self, layer: int, first_chunk: int, last_chunk: int, sink: Sink | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of frames first..last that are not the sink's, and with ``sink`` of the sink too: each
        [B, G, L, E], in any order. What was gathered stays until the next call."""
        self._check_held(layer, max(first_chunk, self._first_of_sink + self._sink), last_chunk + 1)
        spans = self._spans(first_chunk, last_chunk, sink)
        moved = self._moved(first_chunk) if sink == "near" else 0
        if len(spans) == 1 and not moved:
            return self._store.read(layer, self._tokens(*spans[0]))
        pieces = [self._store.read(layer, self._tokens(*span)) for span in spans]
        key = self._gather(0, [own for own, _ in pieces])
        value = pieces[0][1] if len(pieces) == 1 else self._gather(1, [own for _, own in pieces])
        if moved:
            of_sink = key[:, :, : self._sink * self.tokens_per_chunk]
            of_sink.copy_(self._later(of_sink, moved))
        return key, value

    def places_read(self, layer: int, first_chunk: int, last_chunk: int, sink: Sink | None = None) -> list[int]:
        held = self._frames_held(layer)
        spans = self._spans(first_chunk, last_chunk, sink)
        return [held[slot] for start, length in spans for slot in range(start, start + length)]

    def mask(
        self, layer: int, first_chunk: int, last_chunk: int, sink: Sink | None = None, *, query: Tensor
    ) -> Tensor | None:
        spans = [self._tokens(*span) for span in self._spans(first_chunk, last_chunk, sink)]
        return corrected(None, self._store, layer, spans, query)

    def num_keys(self, first_chunk: int, last_chunk: int, sink: Sink | None = None) -> int:
        return sum(length for _, length in self._spans(first_chunk, last_chunk, sink)) * self.tokens_per_chunk

    def renew_sink(self, first: int) -> None:
        """The sink is of the frames from ``first`` on from now on; they must be written next."""
        self._first_of_sink = first

    def finish(self, chunk: int, is_final: bool = True) -> None:
        """Of a frame; frames stay or leave by their age alone, whatever the store makes of those that are final."""
        self._finished_end = max(self._finished_end, chunk + 1)
        if is_final:
            for layer in range(len(self._ends)):
                self._settle(layer, chunk)

    def _is_sink(self, chunk: int) -> bool:
        return chunk - self._first_of_sink < self._num_sink

    def _to_settle(self, layer: int, chunk: int) -> slice | None:
        of_sink = 0 <= chunk - self._first_of_sink < self._sink
        if not of_sink and chunk < self._ends[layer] - self._ring:
            return None  # another frame stands in its place
        place = chunk - self._first_of_sink if of_sink else self._ring_spans(chunk, chunk + 1)[0][0]
        return self._tokens(place, 1)

    def _most_settled(self, num_whole: int) -> int:
        return self.capacity  # the first frames, too, leave

    def clear(self) -> None:
        super().clear()
        self._first_of_sink, self._finished_end, self._ends = 0, 0, [0] * len(self._ends)

    def positions(self, layer: int) -> Tensor:
        tokens = torch.arange(self.tokens_per_chunk, dtype=torch.int32, device=self._device)
        frames = torch.tensor(self.frames_held, dtype=torch.int32, device=self._device)
        return (frames[:, None] * self.tokens_per_chunk + tokens).flatten().expand(*self._heads, -1)

    @property
    def frames_held(self) -> list[int]:
        """The frame in every slot that is taken."""
        return self._frames_held(layer=0)

    def _frames_held(self, layer: int) -> list[int]:
        newest = self._ends[layer] - 1
        of_sink = range(self._first_of_sink, min(self._first_of_sink + self._sink, newest + 1))
        of_ring = (newest - (newest - self._sink - slot) % self._ring for slot in range(self._ring))
        return [*of_sink, *(frame for frame in of_ring if frame >= self._first_of_sink + self._sink)]

    @property
    def num_tokens(self) -> int:
        return len(self.frames_held) * self.tokens_per_chunk

    @property
    def sizes(self) -> Sizes:
        sizes = super().sizes
        return sizes | {"read_buffer": sizes.get("read_buffer", 0) + self._gathered.nbytes}

    @property
    def bytes_used(self) -> int:
        return super().bytes_used + self._gathered.nbytes

    # Slots, in frames.

    def _spans(self, first: int, last: int, sink: Sink | None) -> list[tuple[int, int]]:
        """Where frames are read from: starts and lengths, neighbours joined, the sink's first."""
        sink_end = self._first_of_sink + self._sink
        spans = self._ring_spans(max(first, sink_end), last + 1)
        if sink is not None and self._sink:
            spans.append((0, min(self._sink, last + 1 - self._first_of_sink)))
        joined: list[tuple[int, int]] = []
        for start, length in sorted(span for span in spans if span[1] > 0):
            if joined and sum(joined[-1]) == start:
                start, length = joined[-1][0], joined.pop()[1] + length
            joined.append((start, length))
        return joined

    def _ring_spans(self, first: int, end: int) -> list[tuple[int, int]]:
        if end <= first:
            return []
        start = self._sink + (first - self._sink) % self._ring
        before_wrap = min(end - first, self._sink + self._ring - start)
        return [(start, before_wrap), (self._sink, end - first - before_wrap)]

    def _check_held(self, layer: int, first: int, end: int) -> None:
        if first < end and (end - first > self._ring or first < self._ends[layer] - self._ring):
            raise RuntimeError(
                f"frames {first} to {end - 1} are not all held: a ring of {self._ring} has seen frame "
                f"{self._ends[layer] - 1}"
            )

    def _moved(self, first: int) -> int:
        """Frames from the sink's own time to that right before frame ``first``."""
        return max(0, first - self._first_of_sink - self._sink)

    def _tokens(self, start: int, length: int) -> slice:
        return slice(start * self.tokens_per_chunk, (start + length) * self.tokens_per_chunk)

    def _gather(self, which: int, pieces: Sequence[Tensor]) -> Tensor:
        target, end = self._gathered[which], 0
        for piece in pieces:
            start, end = end, end + piece.shape[2]
            target[:, :, start:end] = piece
        return target[:, :, :end]
