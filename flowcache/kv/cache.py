"""Keys and values of every chunk seen so far, in buffers that are allocated once; where chunks stand, and what is kept.

Shape letters: B batch, G key-value heads, H query heads, E channels a head, T tokens a chunk, L tokens read, K tokens
kept of finished chunks.
"""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.clock import SectionClock
from flowcache.kv.budget import Budget
from flowcache.kv.correction import corrected
from flowcache.kv.policy import KvPolicy
from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.select.base import Entries
from flowcache.kv.store.base import Sizes, StoreShape


class KvCache:
    """The cache of one guidance branch of one generation.

    Keys carry their rotary position, and chunks stand in order, T tokens each. Without a budget chunk i owns slots
    [i*T, (i+1)*T). With one, the oldest chunks, once finished, share the first K slots, in which every layer and head
    keeps its own choice of their entries; the chunks after them stand whole behind. Buffers are allocated once and
    never grow.

    Compressing takes two calls, so that it needs no memory for queries and no pass of its own: ``begin_compression``
    says how slots are counted from now on, and then ``score`` moves every layer's entries there, before the layer
    writes or reads.

    Args:
        num_layers, num_heads, head_channels: the network's layers, key-value heads (G) and channels a head (E).
        tokens_per_chunk: T.
        num_chunks: most chunks ever written; the capacity, unless a budget gives another.
        batch_size, dtype, device: of the keys and values.
        policy: chooses what to keep, and holds it; the cache works with fresh copies of its parts.
        budget: what may be held; None is everything.
        rotary: how keys carry their position, for selectors that ask.
        open_chunks: most chunks at once whose entries are not final; None is all.
        spans_per_chunk: what a cache that counts in parts of chunks takes for a chunk, where a store counts in chunks.

    Attributes:
        clock: gets the section "compression".
        num_compressions: that have begun.
        spare: chunks that a store has room for, as they are, beyond those that the schedule needs.
    """

    spare: ClassVar[int] = 0

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_channels: int,
        tokens_per_chunk: int,
        num_chunks: int,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        policy: KvPolicy | None = None,
        budget: Budget | None = None,
        rotary: RotaryPairs | None = None,
        open_chunks: int | None = None,
        spans_per_chunk: int = 1,
    ) -> None:
        if min(num_layers, num_heads, head_channels, tokens_per_chunk, num_chunks, batch_size) < 1:
            raise ValueError(
                f"every size of a KV cache must be at least 1, got {num_layers} layers, {num_heads} heads of "
                f"{head_channels}, {num_chunks} chunks of {tokens_per_chunk} tokens, batch {batch_size}"
            )
        self.tokens_per_chunk = tokens_per_chunk
        self.num_chunks, self.budget, self._dtype = num_chunks, budget, dtype
        self.clock = SectionClock(device)
        self.capacity = num_chunks * tokens_per_chunk if budget is None else budget.capacity
        policy = KvPolicy() if policy is None else policy
        self._select, self._store = policy.select.fresh(), policy.store.fresh()
        heads = (num_layers, batch_size, num_heads)
        self._num_newest = self._store.newest_chunks * spans_per_chunk  # of final chunks, that are not settled
        self._num_sink = self._store.sink_chunks * spans_per_chunk
        whole = self._num_newest + self._num_sink
        most_open = num_chunks if open_chunks is None else open_chunks * spans_per_chunk + whole + self.spare
        settled = self._most_settled(whole)
        blocks = {"block": tokens_per_chunk, "open": most_open * tokens_per_chunk, "settled": settled}
        shape = StoreShape(*heads, self.capacity, head_channels, dtype, device, **blocks)
        self._allocate(shape)
        self._rotary = rotary
        self._device, self._heads = torch.device(device), (batch_size, num_heads)
        # Where in the video kept entries stand, what is added to their logits, what was observed of all, and the last
        # forward's queries.
        self._positions = self._bias = self._observed = self._queries = torch.empty(0, device=device)
        if budget is not None:
            self._select.allocate(shape)
            self._positions = torch.zeros(*heads, budget.kept, dtype=torch.int32, device=device)
            if self._select.biases:
                self._bias = torch.zeros(*heads, budget.kept, dtype=torch.float32, device=device)
            if self._select.adds_up:
                self._observed = torch.zeros(*heads, self.capacity, dtype=torch.float32, device=device)
            if budget.query_heads:
                count = self._select.num_queries(budget.tokens_per_frame, tokens_per_chunk)
                shape = (num_layers, batch_size, budget.query_heads, count, head_channels)
                self._queries = torch.zeros(shape, dtype=dtype, device=device)
        self._written, self._clean = [False] * num_chunks, [False] * num_chunks
        self._newest: list[deque[int]] = [deque() for _ in range(num_layers)]  # final, but not settled yet
        self._kept = 0  # tokens kept of the chunks before the first that stands whole
        self._first_whole = 0
        self._unusable = torch.zeros((), dtype=torch.int64, device=device)
        self._moving = (0, 0, 0, 0)  # both of them, tokens to compress and tokens held, before the compression begun
        self._only_observes, self._scorer = False, 0  # the chunk whose queries are asked
        self.num_compressions = 0

    def _allocate(self, shape: StoreShape) -> None:
        self._store.allocate(shape)

    def write(self, layer: int, chunk: int, key: Tensor, value: Tensor) -> None:
        """Overwrite a chunk's slots with key and value, each [B, G, T, E]."""
        self._store.write(layer, self._slots(chunk), key, value)
        self._written[chunk] = True
        if self._clean[chunk]:
            self._settle(layer, chunk)

    def write_some(self, layer: int, chunk: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Of a chunk that is not finished overwrite the slots that ``places`` (int64 [n]) says, with [B, G, n, E] each.

        Raises RuntimeError where the chunk was not written as a whole before.
        """
        if not self._written[chunk]:
            raise never_whole(chunk)
        self._store.write_some(layer, self._slots(chunk), places, key, value)

    def read(self, layer: int, first_chunk: int, last_chunk: int) -> tuple[Tensor, Tensor]:
        """Keys and values of chunks first..last inclusive, each [B, G, L, E]: views, where the store holds them so.

        A first chunk that is compressed brings all that is kept of the compressed ones with it; see ``mask``.
        """
        return self._store.read(layer, slice(self._start(first_chunk), self._end(last_chunk)))

    def mask(self, layer: int, first_chunk: int, last_chunk: int, query: Tensor) -> Tensor | None:
        """What attention to the entries that ``read`` gives is to mind: [B, G, 1, L], None where there is nothing.

        Bool, which of them are of chunks first..last; or, where selections or the store add to logits, those sums in
        the keys' type, -inf for entries that are not. ``query`` [B, G, Q, E] are the queries that attend, of all heads
        that share keys; the store corrects for their mean square.
        """
        mask = self._mask_of_kept(layer, first_chunk, last_chunk)
        return corrected(mask, self._store, layer, [slice(self._start(first_chunk), self._end(last_chunk))], query)

    def places_read(self, layer: int, first_chunk: int, last_chunk: int) -> list[int]:
        """Which chunks the entries are of that ``read`` gives, in their order, where none is compressed."""
        return list(range(first_chunk, last_chunk + 1))

    def attend(self, layer: int, query: Tensor, *seen: int | str) -> Tensor:
        """Attention of queries [B, G, Q, E] to what ``read`` gives of ``seen``, its arguments: [B, G, Q, E]."""
        key, value = self.read(layer, *seen)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask(layer, *seen, query=query))

    def _mask_of_kept(self, layer: int, first_chunk: int, last_chunk: int) -> Tensor | None:
        if first_chunk >= self._first_whole or (first_chunk == 0 and not self._select.biases):
            return None
        kept = self._positions[layer] >= first_chunk * self.tokens_per_chunk
        num_whole = self.num_keys(first_chunk, last_chunk) - self._kept
        if self._select.biases:
            kept = self._bias[layer].masked_fill(~kept, -math.inf).to(self._dtype)
        whole = kept.new_full((*kept.shape[:-1], num_whole), fill_value=not self._select.biases)
        return torch.cat([kept, whole], dim=-1)[:, :, None]

    def num_keys(self, first_chunk: int, last_chunk: int) -> int:
        """L of ``read``."""
        return self._end(last_chunk) - self._start(first_chunk)

    def finish(self, chunk: int, is_final: bool = True) -> None:
        """Mark a chunk's entries as clean: they belong to a finished chunk, and are final as they are; or once they are
        written the next time, if not ``is_final``."""
        self._clean[chunk] = True
        if is_final:
            for layer in range(len(self._newest)):
                self._settle(layer, chunk)

    def _settle(self, layer: int, chunk: int) -> None:
        """A chunk's entries are final. The store settles them once enough newer ones are, unless they are a sink."""
        newest = self._newest[layer]
        if not self._store.settles or self._is_sink(chunk):
            return
        if chunk not in newest:
            newest.append(chunk)
        while len(newest) > self._num_newest:
            slots = self._to_settle(layer, newest.popleft())
            if slots is not None:
                self._store.settle(layer, slots)

    def _is_sink(self, chunk: int) -> bool:
        """Of what a store leaves as it is."""
        return chunk < self._num_sink

    def _to_settle(self, layer: int, chunk: int) -> slice | None:
        """A chunk's slots; None where it is compressed already, or waits to be: selecting comes first."""
        if chunk < self._first_whole:
            return None
        slots = self._slots(chunk)
        return slots if self.budget is None or slots.stop <= self.budget.kept else None

    def _most_settled(self, num_whole: int) -> int:
        """Slots that may be settled at once, where ``num_whole`` finished chunks are not."""
        if self.budget is not None:
            return self.budget.kept
        # The newest chunk of all is never settled, since nothing reads it once it is finished.
        return max(0, self.num_chunks - num_whole - 1) * self.tokens_per_chunk

    def clear(self) -> None:
        """Forget every entry, for a new window; the buffers stay."""
        self._store.clear()
        self._newest = [deque() for _ in self._newest]
        self._written, self._clean = [False] * self.num_chunks, [False] * self.num_chunks
        self._kept = self._first_whole = 0
        self._observed.zero_()

    def copy_chunk_from(self, other: KvCache, chunk: int) -> None:
        """Take over a chunk's entries from another branch's cache of the same shape; it stands whole in both."""
        self._store.copy(self._slots(chunk), other._store, other._slots(chunk))
        self._newest = [newest.copy() for newest in other._newest]
        self._written[chunk] = True

    # Compression.

    def exceeds_budget(self, end: int) -> bool:
        """Whether the chunks before ``end``, which are finished, hold more than the budget keeps."""
        return self.budget is not None and end > self._first_whole and self._tokens_before(end) > self.budget.kept

    def begin_compression(self, end: int, scorer: int | None = None) -> int:
        """Count slots from now on as if the chunks before ``end`` were compressed, by the queries of chunk ``scorer``
        (by default ``end``); returns the tokens they hold."""
        newest = max((chunk for chunk, written in enumerate(self._written) if written), default=end - 1)
        length, held = self._tokens_before(end), self._end(newest)
        self._moving, self._only_observes = (self._kept, self._first_whole, length, held), False
        self._scorer = end if scorer is None else scorer
        self._kept, self._first_whole = self.budget.kept, end
        self.num_compressions += 1
        return length

    def begin_observation(self, end: int, scorer: int | None = None) -> int:
        """Have ``score`` only look at the chunks before ``end``, which are final; returns the tokens they hold."""
        length = self._tokens_before(end)
        self._moving, self._only_observes = (self._kept, self._first_whole, length, length), True
        self._scorer = end if scorer is None else scorer
        return length

    def score(self, layer: int, query: Tensor) -> None:
        """Compress a layer by the queries [B, H, T, E] of a chunk, rotated as the keys are; or remember them for
        ``compress``, where the budget says so."""
        query = self._select.queries(query, self.budget.tokens_per_frame)
        if self.budget.query_heads:
            self._queries[layer] = query
        else:
            with self.clock("compression"):
                self._compress(layer, query)

    def compress(self) -> None:
        """Compress all layers, by the queries that ``score`` remembered."""
        with self.clock("compression"):
            for layer, query in enumerate(self._queries):
                self._compress(layer, query)

    def positions(self, layer: int) -> Tensor:
        """Where in the video each entry held stands, in tokens: int32 [B, G, ``num_tokens``]."""
        return self._positions_of(layer, self._kept, self._first_whole, self.num_tokens)

    @property
    def unusable_kept(self) -> int:
        """Entries that compressions kept although nothing could score them (see Selection): NaN, infinite or zero.

        Over all layers, heads and compressions; 0 on device "meta". Waits for the device.
        """
        return 0 if self._unusable.is_meta else int(self._unusable)

    def _compress(self, layer: int, query: Tensor) -> None:
        (kept, first_whole, length, held), budget = self._moving, self.budget
        key, value = self._store.read(layer, slice(0, length))
        position = self._positions_of(layer, kept, first_whole, length)
        bias = self._bias_of(layer, kept, length)
        observed = self._observed[layer, :, :, :length] if self._select.adds_up else None
        entries = Entries(
            query,
            key,
            value,
            position,
            bias,
            layer,
            budget.tokens_per_frame,
            self.tokens_per_chunk,
            observed,
            self._query_position(),
            self._rotary,
        )
        if self._select.observes:
            seen = self._select.observe(entries)
            if observed is not None:
                observed += seen
        if self._only_observes:
            return
        chosen = self._select.select(entries, budget.kept)
        if chosen.indices.shape != (*self._heads, budget.kept):
            raise ValueError(
                f"{type(self._select).__name__} chose keys of shape {list(chosen.indices.shape)}; a selection is of "
                f"batch, key-value heads and the budget's keys, {[*self._heads, budget.kept]}"
            )
        self._unusable += chosen.unusable.sum()  # stays on the device
        self._positions[layer] = position.gather(-1, chosen.indices)
        if self._select.biases:
            self._bias[layer] = 0.0 if chosen.bias is None else chosen.bias
        if observed is not None:
            kept_of = observed.gather(-1, chosen.indices)
            self._observed[layer] = 0.0  # of the chunks behind, which move up, nothing was observed yet
            self._observed[layer, :, :, : budget.kept] = kept_of
        self._store.keep(layer, chosen.indices, length, held, chosen.value)

    def _query_position(self) -> Tensor:
        tokens = torch.arange(self.tokens_per_chunk, device=self._device) + self._scorer * self.tokens_per_chunk
        return self._select.queries(tokens[:, None], self.budget.tokens_per_frame)[:, 0]

    def _bias_of(self, layer: int, kept: int, length: int) -> Tensor | None:
        """Of ``length`` entries, of which the first ``kept`` are compressed."""
        if not self._select.biases:
            return None
        bias = torch.zeros(*self._heads, length, dtype=torch.float32, device=self._device)
        bias[..., :kept] = self._bias[layer, :, :, :kept]
        return bias

    def _positions_of(self, layer: int, kept: int, first_whole: int, length: int) -> Tensor:
        """Positions of ``length`` entries, of which the first ``kept`` are compressed."""
        start = first_whole * self.tokens_per_chunk
        whole = torch.arange(start, start + length - kept, dtype=torch.int32, device=self._device)
        whole = whole.expand(*self._heads, -1)
        return torch.cat([self._positions[layer, :, :, :kept], whole], dim=-1) if kept else whole

    # Slots.

    def _tokens_before(self, chunk: int) -> int:
        """Of chunks before one that stands whole, and so its first slot."""
        return self._kept + (chunk - self._first_whole) * self.tokens_per_chunk

    def _start(self, chunk: int) -> int:
        return 0 if chunk < self._first_whole else self._tokens_before(chunk)

    def _end(self, chunk: int) -> int:
        return self._tokens_before(chunk + 1)

    def _slots(self, chunk: int) -> slice:
        start = self._tokens_before(chunk)
        end = start + self.tokens_per_chunk
        if chunk < self._first_whole or end > self.capacity:
            raise RuntimeError(
                f"chunk {chunk} has no room in a KV cache of {self.capacity} tokens that holds chunks from "
                f"{self._first_whole} on whole; a policy must compute every chunk's first step"
            )
        return slice(start, end)

    # Sizes.

    @property
    def clean_chunks(self) -> tuple[int, ...]:
        return tuple(chunk for chunk, clean in enumerate(self._clean) if clean)

    @property
    def num_tokens(self) -> int:
        """Tokens held, per layer and head."""
        return self._kept + sum(self._written[self._first_whole :]) * self.tokens_per_chunk

    @property
    def sizes(self) -> Sizes:
        """Bytes allocated, by what they are for."""
        return self._store.sizes | {"selection": self._bytes_beside}

    @property
    def bits_a_number(self) -> float:
        """Of a number of a finished chunk, with what its code is read by."""
        return self._store.bits_a_number

    @property
    def bytes_allocated(self) -> int:
        return sum(self.sizes.values())

    @property
    def bytes_used(self) -> int:
        return self._store.bytes_held(self.num_tokens, self.capacity) + self._bytes_beside

    @property
    def _bytes_beside(self) -> int:
        """Of what stands there from the beginning: positions, biases, what was observed, remembered queries."""
        own = (self._positions, self._bias, self._observed, self._queries)
        return self._select.nbytes + sum(tensor.nbytes for tensor in own)


def never_whole(chunk: int) -> RuntimeError:
    return RuntimeError(f"chunk {chunk} computes in part and never did as a whole; its first step must")
