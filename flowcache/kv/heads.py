"""A cache in which a layer's heads keep different frames: each kind of heads has a buffer and an attention of its own.

Shape letters: B batch, G key-value heads, E channels a head, N tokens written, Q queries, K tokens kept.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.cache import KvCache, never_whole
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.by_head import KeepSet
from flowcache.kv.store.base import KvStore, KvUse, Sizes, StoreShape
from flowcache.kv.window import Sink


class Held(NamedTuple):
    """Latent frames that heads hold of finished chunks, in the order in which they stand."""

    sink: int
    patches: int  # in frames' worth
    recent: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class _Kind:
    """Heads that keep the same, for every number of finished chunks."""

    heads: tuple[int, ...]
    keeps: tuple[KeepSet, ...]
    held: tuple[Held, ...]


@dataclass(frozen=True)
class _Call:
    """Kinds that always hold equally many tokens, and so share a buffer and a call; ``heads`` int64, all of theirs in
    that order, or None where that is every head as it comes. ``capacity`` in tokens."""

    kinds: tuple[_Kind, ...]
    heads: Tensor | None
    store: KvStore
    capacity: int

    def held(self, num_chunks: int) -> int:
        return self.kinds[0].held[num_chunks].total

    def of_heads(self, x: Tensor) -> Tensor:
        """Theirs, of [B, G, N, E]."""
        return x if self.heads is None else x.index_select(1, self.heads)


class HeadCache(KvCache):
    """Every layer's heads are sorted into kinds, see flowcache.kv.select.by_head.

    Buffers begin with what is kept of finished chunks, sink, patches and newest frames, and behind it stand the chunks
    that are not finished, or whose last keys have not attended yet, whole. A finished chunk is taken in layer by layer,
    when its final keys have attended and the next chunk writes or attends: what leaves is gone, the rest moves up. All
    keys stay at the time at which they were written.

    Chunks may have any number of frames; positions are chunks, or frames where the model counts so.

    Args:
        num_layers, num_heads, head_channels: as of KvCache.
        tokens_per_position, tokens_per_frame: of a position, and of a latent frame.
        starts: latent frame at which each chunk begins, and where the last one ends.
        open_chunks: most chunks at once that stand whole.
        batch_size, dtype, device: as of KvCache.
        policy: whose selector is by head. Raises ValueError where heads were sorted on another network, and for a store
            that settles what is final.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        tokens_per_position: int,
        tokens_per_frame: int,
        starts: Sequence[int],
        open_chunks: int,
        policy: KvPolicy,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        policy.select.check_heads(num_layers, num_heads)
        if policy.store.settles:
            raise ValueError(
                f"{type(policy.store).__name__} holds finished chunks as wholes, and {type(policy.select).__name__} "
                "keeps other frames of them in each head; choose kv/store=full_precision or bfloat16"
            )
        self._starts, self._frame = tuple(starts), tokens_per_frame
        self._frames_per_position = tokens_per_position // tokens_per_frame
        longest = max(end - start for start, end in pairwise(starts))
        self._open = min(open_chunks * longest, starts[-1])
        self._calls: list[tuple[_Call, ...]] = []
        self._num_layers = num_layers
        super().__init__(
            num_layers,
            num_heads,
            head_channels,
            tokens_per_position,
            starts[-1] // self._frames_per_position,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            policy=policy,
        )
        self._forget()

    def _allocate(self, shape: StoreShape) -> None:
        self._calls = [self._calls_of(layer, shape) for layer in range(shape.num_layers)]

    def _calls_of(self, layer: int, shape: StoreShape) -> tuple[_Call, ...]:
        stages = [self._select.keep_sets(layer, finished) for finished in range(len(self._starts))]
        if sorted(head for each in stages[0] for head in each.heads) != list(range(shape.num_heads)):
            raise ValueError(f"{type(self._select).__name__} must put each of layer {layer}'s heads into one kind")
        kinds = [
            _Kind(keeps[0].heads, keeps, self._held(keeps)) for keeps in zip(*stages, strict=True) if keeps[0].heads
        ]
        alike: dict[tuple[int, ...], list[_Kind]] = {}
        for number, kind in enumerate(kinds):
            takes_patches = any(held.patches for held in kind.held)
            length = (number,) if takes_patches else (-1, *(held.total for held in kind.held))
            alike.setdefault(length, []).append(kind)
        return tuple(self._call(own, shape) for own in alike.values())

    def _call(self, kinds: list[_Kind], shape: StoreShape) -> _Call:
        heads = [head for kind in kinds for head in kind.heads]
        last = self._starts[-1]
        held = zip(self._starts, (held.total for held in kinds[0].held), strict=True)
        capacity = self._frame * max(kept + min(self._open, last - start) for start, kept in held)
        size = (1, shape.batch_size, len(heads), capacity, shape.channels, shape.dtype, shape.device)
        store = self._store.fresh()
        store.allocate(StoreShape(*size))
        every = heads == list(range(shape.num_heads))
        return _Call(tuple(kinds), None if every else torch.tensor(heads, device=shape.device), store, capacity)

    def _held(self, keeps: Sequence[KeepSet]) -> tuple[Held, ...]:
        held = [Held(0, 0, 0)]
        for index, keep in enumerate(keeps[1:]):
            before, start, end = held[-1], self._starts[index], self._starts[index + 1]
            sink = min(keep.sink_frames, end)
            passing = before.recent + end - start - (sink - before.sink)
            recent = min(keep.recent_frames, passing)
            held.append(Held(sink, min(keep.patch_frames, passing - recent), recent))
        return tuple(held)

    # What the layers call.

    def write(self, layer: int, chunk: int, key: Tensor, value: Tensor) -> None:
        """Overwrite a chunk that begins at place ``chunk`` with key and value, each [B, G, N, E]."""
        self._take_in(layer)
        taken, first = self._taken[layer], chunk * self._frames_per_position
        behind, end = first - self._starts[taken], first + key.shape[2] // self._frame
        if behind < 0 or end - self._starts[taken] > self._open:
            raise RuntimeError(
                f"latent frames {first} to {end - 1} have no room in a KV cache that holds {self._open} frames from "
                f"{self._starts[taken]} on whole; a policy must compute every chunk's first step"
            )
        for call in self._calls[layer]:
            start = (call.held(taken) + behind) * self._frame
            call.store.write(0, slice(start, start + key.shape[2]), call.of_heads(key), call.of_heads(value))
        self._ends[layer] = max(self._ends[layer], end)

    def write_some(self, layer: int, chunk: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        self._take_in(layer)
        taken, first = self._taken[layer], chunk * self._frames_per_position
        behind, length = first - self._starts[taken], self._starts[self._num_chunks(first) + 1] - first
        if behind < 0 or first + length > self._ends[layer]:
            raise never_whole(chunk)
        for call in self._calls[layer]:
            start = (call.held(taken) + behind) * self._frame
            slots = slice(start, start + length * self._frame)
            call.store.write_some(0, slots, places, call.of_heads(key), call.of_heads(value))

    def attend(self, layer: int, query: Tensor, first_chunk: int, last_chunk: int, sink: Sink | None = None) -> Tensor:
        """As of KvCache, a kind of heads at a time. Whoever sees any of what was taken in, or names the sink, sees all
        that is kept of it."""
        self._take_in(layer)
        taken, (first, end) = self._taken[layer], self._frames(first_chunk, last_chunk)
        begins = self._starts[taken]
        out: Tensor | None = None
        for call in self._calls[layer]:
            held = call.held(taken)
            start = 0 if first < begins or sink is not None else held + first - begins
            seen = slice(start * self._frame, (held + end - begins) * self._frame)
            own = F.scaled_dot_product_attention(call.of_heads(query), *call.store.read(0, seen))
            if call.heads is None:
                out = own
                break
            if out is None:  # laid out as the tokens that it becomes
                batch, heads, queries, channels = query.shape
                out = own.new_empty(batch, queries, heads, channels).transpose(1, 2)
            out.index_copy_(1, call.heads, own)
        if end <= self._finished_end:
            self._encoded[layer] = max(self._encoded[layer], self._num_chunks(end))
        return out

    # Chunks that are finished.

    def finish(self, chunk: int, is_final: bool = True) -> None:
        end = (chunk + 1) * self._frames_per_position
        self._finished_end = max(self._finished_end, end)
        if is_final:
            self._encoded = [max(encoded, self._num_chunks(end)) for encoded in self._encoded]

    def clear(self) -> None:
        for call in (call for calls in self._calls for call in calls):
            call.store.clear()
        self._forget()

    def _forget(self) -> None:
        layers = self._num_layers
        self._finished_end = 0
        self._ends = [0] * layers  # by layer, frames written
        self._encoded = [0] * layers  # chunks whose keys are final, and have attended
        self._taken = [0] * layers  # those that were taken in
        self._newest_taken = self._newest_dropped = -1
        self._indices: dict[tuple[Held, Held, int], Tensor] = {}  # of the newest chunk taken in, the same in all layers
        self._patch_numbers: dict[tuple[int, int, int], Tensor] = {}

    def _take_in(self, layer: int) -> None:
        while self._taken[layer] < self._encoded[layer]:
            with self.clock("compression"):
                self._take_in_next(layer)

    def _take_in_next(self, layer: int) -> None:
        taken = self._taken[layer]
        if taken != self._newest_taken:
            self._newest_taken = taken
            self._indices.clear()
            self._patch_numbers.clear()
        end, batch = self._starts[taken + 1], self._heads[0]
        length = end - self._starts[taken]
        for call in self._calls[layer]:
            whole = call.held(taken) + length
            if call.held(taken + 1) == whole and not any(kind.held[taken].patches for kind in call.kinds):
                continue  # nothing leaves
            parts = [self._index(call, kind, taken).expand(batch, len(kind.heads), -1) for kind in call.kinds]
            held = whole + self._ends[layer] - end
            call.store.keep(0, torch.cat(parts, dim=1), whole * self._frame, held * self._frame)
            if taken != self._newest_dropped:
                self._newest_dropped = taken
                self.num_compressions += 1
        self._taken[layer] += 1

    def _index(self, call: _Call, kind: _Kind, taken: int) -> Tensor:
        """Which slots stay where chunk ``taken`` is taken in: int64 [K]."""
        before, after = kind.held[taken], kind.held[taken + 1]
        patches = self._patches_of(kind.keeps[taken + 1])
        if (before, after, patches) not in self._indices:
            end = before.total + self._starts[taken + 1] - self._starts[taken]
            passing = before.patches + after.sink  # where frames begin that stay as recent ones, or leave
            spans = [self._tokens(0, after.sink), self._tokens(end - after.recent, end)]
            if after.patches:
                chosen = self._patch_tokens(call, slice(passing, end), after, patches)
                spans.insert(1, passing * self._frame + chosen)
            self._indices[before, after, patches] = torch.cat(spans)
        return self._indices[before, after, patches]

    def _patch_tokens(self, call: _Call, passing: slice, after: Held, patches: int) -> Tensor:
        """The tokens of patches that stay of frames that leave, which are the first of the ``passing`` ones: int64.

        They are chosen once, by the keys of the first layer that asks and its heads, of the batch's first entry.
        """
        leaving = passing.stop - passing.start - after.recent
        key = (leaving, patches, after.patches)
        if key not in self._patch_numbers:
            slots = slice(passing.start * self._frame, passing.stop * self._frame)
            keys = call.store.read(0, slots)[0][0].float().transpose(0, 1).flatten(1)  # [N, G*E]
            length = leaving * self._frame
            likeness = F.cosine_similarity(keys[:length], keys[self._frame : self._frame + length], dim=-1)
            score = likeness.unflatten(0, (leaving * patches, -1)).mean(-1)
            least = score.topk(after.patches * patches, largest=False).indices
            self._patch_numbers[key] = least.sort().values
        size = self._frame // patches
        tokens = torch.arange(size, device=self._device)
        return (self._patch_numbers[key][:, None] * size + tokens).flatten()

    def _patches_of(self, keep: KeepSet) -> int:
        """Equal patches of a frame: as many as asked for, or fewer where its tokens do not divide so."""
        return next(count for count in range(min(keep.patches, self._frame), 0, -1) if self._frame % count == 0)

    # Sizes and places.

    def positions_of(self, layer: int) -> list[tuple[tuple[int, ...], Tensor]]:
        """By kind, its heads and where in the video the entries stand that they hold, in tokens: int64 [K]."""
        found, taken, last = [], self._taken[layer], self._ends[layer]
        for kind in (kind for call in self._calls[layer] for kind in call.kinds):
            held, end = kind.held[taken], self._starts[taken]
            spans = [self._tokens(0, held.sink), self._tokens(end - held.recent, max(last, end))]
            if held.patches:
                before = kind.held[taken - 1]
                passing = end - before.recent - (end - self._starts[taken - 1]) + held.sink - before.sink
                patches = self._patches_of(kind.keeps[taken])
                numbers = self._patch_numbers[end - held.recent - passing, patches, held.patches]
                size = self._frame // patches
                within = torch.arange(size, device=self._device)
                spans.insert(1, passing * self._frame + (numbers[:, None] * size + within).flatten())
            found.append((kind.heads, torch.cat(spans)))
        return found

    def num_keys(self, first_chunk: int, last_chunk: int, sink: Sink | None = None) -> Fraction:
        """Mean over layers and heads; what a chunk attends to once all that is finished before it was taken in."""
        first, end = self._frames(first_chunk, last_chunk)
        taken = self._num_chunks(end) - 1 if end <= self._finished_end else self._num_chunks(self._finished_end)
        begins = self._starts[taken]
        if first >= begins and sink is None:
            return Fraction((end - first) * self._frame)
        return (self._mean_held(taken) + end - begins) * self._frame

    def _mean_held(self, taken: int) -> Fraction:
        """Latent frames, over all layers and heads."""
        kinds = [kind for calls in self._calls for call in calls for kind in call.kinds]
        total = sum(len(kind.heads) * kind.held[taken].total for kind in kinds)
        return Fraction(total, self._num_layers * self._heads[1])

    def _frames(self, first_chunk: int, last_chunk: int) -> tuple[int, int]:
        """The first latent frame of places, and the one after them."""
        return first_chunk * self._frames_per_position, (last_chunk + 1) * self._frames_per_position

    def _num_chunks(self, end: int) -> int:
        """Whole chunks before a latent frame."""
        return bisect_right(self._starts, end) - 1

    def _tokens(self, first: int, end: int) -> Tensor:
        """Of latent frames first..end - 1."""
        return torch.arange(first * self._frame, end * self._frame, device=self._device)

    @property
    def num_tokens(self) -> int:
        """Mean over layers and heads, rounded up."""
        behind = max(0, self._ends[0] - self._starts[self._taken[0]])
        return math.ceil((self._mean_held(self._taken[0]) + behind) * self._frame)

    @property
    def sizes(self) -> Sizes:
        total: Counter[KvUse] = Counter()
        for call in (call for calls in self._calls for call in calls):
            total.update(call.store.sizes)
        return dict(total)

    @property
    def bits_a_number(self) -> float:
        return self._calls[0][0].store.bits_a_number

    @property
    def bytes_used(self) -> int:
        behind = max(0, self._ends[0] - self._starts[self._taken[0]])
        total = 0
        for call in (call for calls in self._calls for call in calls):
            tokens = (call.held(self._taken[0]) + behind) * self._frame
            total += call.store.bytes_held(tokens, call.capacity)
        return total
