"""The KV cache: what is written is read, in place, and never beyond what was allocated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcache.kv_cache import KvCache


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    channels: int
    tokens: int
    chunks: int
    batch: int
    dtype: torch.dtype

    def cache(self) -> KvCache:
        return KvCache(
            self.layers, self.heads, self.channels, self.tokens, self.chunks, batch_size=self.batch, dtype=self.dtype
        )

    def draw(self, random: torch.Generator) -> torch.Tensor:
        return torch.randn(self.batch, self.heads, self.tokens, self.channels, generator=random).to(self.dtype)


sizes = st.integers(1, 4)
shapes = st.builds(
    Shape,
    sizes,
    sizes,
    sizes,
    sizes,
    st.integers(1, 5),
    st.integers(1, 2),
    st.sampled_from([torch.float32, torch.bfloat16]),
)


@given(shapes, st.data())
def test_reads_are_the_latest_writes_in_order_of_position(shape, data):
    cache, random = shape.cache(), torch.Generator().manual_seed(0)
    zero = torch.zeros(shape.batch, shape.heads, shape.tokens, shape.channels, dtype=shape.dtype)
    expected = {(layer, chunk): (zero, zero) for layer in range(shape.layers) for chunk in range(shape.chunks)}
    places = st.tuples(st.integers(0, shape.layers - 1), st.integers(0, shape.chunks - 1))
    for place in data.draw(st.lists(places, max_size=12)):
        expected[place] = shape.draw(random), shape.draw(random)
        cache.write(*place, *expected[place])
    first = data.draw(st.integers(0, shape.chunks - 1))
    last = data.draw(st.integers(first, shape.chunks - 1))
    for layer in range(shape.layers):
        key, value = cache.read(layer, first, last)
        pairs = [expected[layer, chunk] for chunk in range(first, last + 1)]
        assert torch.equal(key, torch.cat([k for k, _ in pairs], dim=2))
        assert torch.equal(value, torch.cat([v for _, v in pairs], dim=2))


@given(shapes, st.data())
def test_reads_are_views_of_buffers_that_stay_where_they_are(shape, data):
    cache, random = shape.cache(), torch.Generator().manual_seed(0)
    layer, chunk = data.draw(st.integers(0, shape.layers - 1)), data.draw(st.integers(0, shape.chunks - 1))
    key, value = cache.read(layer, 0, shape.chunks - 1)
    assert key.untyped_storage().data_ptr() == cache.read(0, 0, 0)[0].untyped_storage().data_ptr()
    written = shape.draw(random), shape.draw(random)
    cache.write(layer, chunk, *written)
    slots = slice(chunk * shape.tokens, (chunk + 1) * shape.tokens)
    assert torch.equal(key[:, :, slots], written[0])
    assert torch.equal(value[:, :, slots], written[1])


@given(shapes, st.data())
def test_bytes_and_tokens_follow_what_was_written(shape, data):
    cache, random = shape.cache(), torch.Generator().manual_seed(0)
    a_chunk = 2 * shape.layers * shape.batch * shape.heads * shape.tokens * shape.channels * shape.dtype.itemsize
    allocated = cache.bytes_allocated
    assert allocated == a_chunk * shape.chunks
    assert (cache.num_tokens, cache.bytes_used) == (0, 0)
    written = set()
    for chunk in data.draw(st.lists(st.integers(0, shape.chunks - 1), max_size=10)):
        for layer in range(shape.layers):
            cache.write(layer, chunk, shape.draw(random), shape.draw(random))
        written.add(chunk)
        assert cache.num_tokens == len(written) * shape.tokens
        assert cache.bytes_used == len(written) * a_chunk
        assert cache.bytes_used <= cache.bytes_allocated == allocated


@given(shapes, st.data())
def test_finished_chunks_are_clean_and_keep_their_entries(shape, data):
    cache, random = shape.cache(), torch.Generator().manual_seed(0)
    key, value = shape.draw(random), shape.draw(random)
    cache.write(0, 0, key, value)
    finished = data.draw(st.lists(st.integers(0, shape.chunks - 1), max_size=6))
    for chunk in finished:
        cache.finish(chunk)
    assert cache.clean_chunks == tuple(sorted(set(finished)))
    assert torch.equal(cache.read(0, 0, 0)[0], key)
    assert torch.equal(cache.read(0, 0, 0)[1], value)


@given(shapes, st.data())
def test_clearing_forgets_every_entry_and_keeps_the_buffers(shape, data):
    cache, random = shape.cache(), torch.Generator().manual_seed(0)
    allocated, place = cache.bytes_allocated, cache.read(0, 0, 0)[0].data_ptr()
    for chunk in data.draw(st.lists(st.integers(0, shape.chunks - 1), max_size=6)):
        cache.write(0, chunk, shape.draw(random), shape.draw(random))
        cache.finish(chunk)
    cache.clear()
    assert (cache.num_tokens, cache.bytes_used, cache.clean_chunks) == (0, 0, ())
    assert (cache.bytes_allocated, cache.read(0, 0, 0)[0].data_ptr()) == (allocated, place)


@given(shapes, st.data())
def test_copying_a_chunk_takes_all_layers_of_it_and_nothing_else(shape, data):
    source, target = shape.cache(), shape.cache()
    random = torch.Generator().manual_seed(0)
    for cache in (source, target):
        for layer in range(shape.layers):
            for chunk in range(shape.chunks):
                cache.write(layer, chunk, shape.draw(random), shape.draw(random))
    before = [[t.clone() for t in target.read(layer, 0, shape.chunks - 1)] for layer in range(shape.layers)]
    copied = data.draw(st.integers(0, shape.chunks - 1))
    target.copy_chunk_from(source, copied)
    for layer in range(shape.layers):
        for chunk in range(shape.chunks):
            slots = slice(chunk * shape.tokens, (chunk + 1) * shape.tokens)
            old = [tensor[:, :, slots] for tensor in before[layer]]
            expected = source.read(layer, chunk, chunk) if chunk == copied else old
            assert all(map(torch.equal, target.read(layer, chunk, chunk), expected))


def test_a_copied_chunk_counts_as_held():
    shape = Shape(2, 1, 2, 3, 4, 1, torch.float32)
    source, target = shape.cache(), shape.cache()
    target.copy_chunk_from(source, 2)
    assert target.num_tokens == 3


@pytest.mark.parametrize("position", range(6))
def test_empty_sizes_are_refused(position):
    sizes = [2, 3, 4, 5, 6, 1]
    sizes[position] = 0
    with pytest.raises(ValueError, match="every size of a KV cache must be at least 1, got"):
        KvCache(*sizes)
