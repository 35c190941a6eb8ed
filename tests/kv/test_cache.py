"""The KV cache: what is written is read, in place, and never beyond what was allocated."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import Entries, Selection
from flowcache.kv.select.joint import Joint
from tests.golden_files import manifest, tensors
from tests.methods import select_keys

QUERY = torch.ones(1, 1, 1, 4)  # which a store that corrects nothing does not look at


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


# With a budget.


def budgeted(kept: int, capacity: int, layers: int = 1, heads: int = 2, channels: int = 4, tokens: int = 6, **options):
    remembers = options.pop("query_heads", 0)
    config = Joint(**{"query_granularity": "chunk", **options})
    budget = Budget(kept, capacity, tokens // 3, remembers)
    return KvCache(
        layers, heads, channels, tokens, 12, policy=KvPolicy(select=config, budget=f"{kept} tokens"), budget=budget
    )


@st.composite
def videos(draw):
    """A cache with a budget, and for every chunk which chunks before it are to be compressed when it comes."""
    tokens, kept = draw(st.sampled_from([3, 6])), draw(st.integers(1, 20))
    delays = draw(st.lists(st.integers(1, 3), min_size=3, max_size=6))
    options = draw(
        st.sampled_from(
            [{}, {"kept_order": "score"}, {"query_granularity": 2}, {"weighting": "polynomial"}, {"pool_kernel": 1}]
        )
    )
    return tokens, kept, delays, options


@given(videos())
def test_a_compressed_cache_holds_what_was_chosen_of_what_was_written(video):
    """Against lists of (position, key, value) for every layer and head, compressed by the same choice."""
    tokens, kept, delays, options = video
    layers, heads, channels = 2, 2, 4
    cache = budgeted(kept, kept + 5 * tokens, layers, heads, channels, tokens, **options)
    allocated = cache.bytes_allocated
    random = torch.Generator().manual_seed(0)
    held = [[[] for _ in range(heads)] for _ in range(layers)]  # (position, key, value)
    whole = 0  # chunks before it are compressed
    for chunk, delay in enumerate(delays):
        end = chunk - delay
        if cache.exceeds_budget(end):
            length = cache.begin_compression(end)
            assert length == len(held[0][0]) - (chunk - end) * tokens > kept
            for layer, own in enumerate(held):
                query = torch.randn(1, heads * 2, tokens, channels, generator=random)
                union = torch.stack([torch.stack([key for _, key, _ in head[:length]]) for head in own])[None]
                config = Joint(**options)
                indices = select_keys(query, union, kept, config, tokens // 3, tokens).indices[0].tolist()
                cache.score(layer, query)
                own[:] = [[head[i] for i in chosen] + head[length:] for head, chosen in zip(own, indices, strict=True)]
            whole = end
        for layer, own in enumerate(held):
            key, value = torch.randn(2, 1, heads, tokens, channels, generator=random).unbind()
            cache.write(layer, chunk, key, value)
            for head in range(heads):
                positions = range(chunk * tokens, (chunk + 1) * tokens)
                own[head] += zip(positions, key[0, head], value[0, head], strict=True)
        for layer, own in enumerate(held):
            key, value = cache.read(layer, 0, chunk)
            assert key.shape[2] == cache.num_tokens == cache.num_keys(0, chunk) == len(own[0])
            assert cache.positions(layer)[0].tolist() == [[position for position, _, _ in head] for head in own]
            assert torch.equal(key[0], torch.stack([torch.stack([k for _, k, _ in head]) for head in own]))
            assert torch.equal(value[0], torch.stack([torch.stack([v for _, _, v in head]) for head in own]))
        compressed = 0 if whole == 0 else kept
        assert cache.num_tokens == compressed + (chunk + 1 - whole) * tokens
        assert cache.bytes_used <= cache.bytes_allocated == allocated
    if Joint(**options).kept_order == "position":
        for layer in range(layers):
            positions = cache.positions(layer)
            assert torch.equal(positions, positions.sort().values)
    cache.clear()
    assert (cache.num_tokens, cache.exceeds_budget(0)) == (0, False)


def compressed_cache(**options) -> KvCache:
    """Four chunks of six tokens, the first two compressed to seven; keys and values hold their positions."""
    cache, random = budgeted(7, 30, **options), torch.Generator().manual_seed(0)
    for chunk in range(4):
        key = torch.randn(1, 2, 6, 4, generator=random)
        cache.write(0, chunk, key, key * 2)
    assert cache.begin_compression(2) == 12
    cache.score(0, torch.randn(1, 4, 6, 4, generator=random))
    return cache


def test_what_is_kept_of_chunks_out_of_reach_is_masked():
    cache = compressed_cache()
    assert cache.mask(0, 0, 3, QUERY) is None
    assert cache.mask(0, 2, 3, QUERY) is None
    assert cache.mask(0, 3, 3, QUERY) is None
    mask = cache.mask(0, 1, 3, QUERY)
    assert (mask.shape, mask.dtype) == ((1, 2, 1, 19), torch.bool)
    assert torch.equal(mask[:, :, 0], cache.positions(0) >= 6)
    assert 0 < (~mask).sum() < 14  # the seed keeps some of each chunk
    assert cache.read(0, 1, 3)[0].shape[2] == 19
    assert cache.read(0, 2, 3)[0].shape[2] == cache.num_keys(2, 3) == 12


@pytest.mark.parametrize(("shape", "more"), [([1, 2, 8], 1), ([1, 2, 6], -1)])
def test_a_selection_of_more_or_fewer_keys_than_the_budget_is_refused(shape, more):
    class Miscounting(Joint):
        def select(self, entries: Entries, budget: int) -> Selection:
            return super().select(entries, budget + more)

    cache = budgeted(7, 30)
    cache._select = Miscounting()
    for chunk in range(2):
        cache.write(0, chunk, *torch.randn(2, 1, 2, 6, 4))
    cache.begin_compression(2)
    with pytest.raises(ValueError, match=rf"Miscounting chose keys of shape {re.escape(str(shape))}; .* \[1, 2, 7\]"):
        cache.score(0, torch.randn(1, 4, 6, 4))


def test_remembered_queries_compress_later_what_queries_at_hand_compress_now():
    now, later = compressed_cache(), compressed_cache(query_heads=4)
    assert not torch.equal(now.read(0, 0, 3)[0], later.read(0, 0, 3)[0])
    later.compress()
    assert all(map(torch.equal, now.read(0, 0, 3), later.read(0, 0, 3)))
    assert torch.equal(now.positions(0), later.positions(0))
    assert later.bytes_allocated - now.bytes_allocated == 4 * 6 * 4 * 4  # heads, queries, channels, float32


@pytest.mark.parametrize(("bad", "kept"), [(0, 0), (17, 0), (18, 1), (24, 7)])
def test_keys_that_cannot_be_scored_are_kept_last_and_counted(bad, kept):
    """Of four chunks of six keys, with room for seven."""
    cache = KvCache(1, 1, 4, 6, 5, policy=KvPolicy(select=Joint(), budget="7 tokens"), budget=Budget(7, 30, 2))
    keys = torch.randn(1, 1, 24, 4, generator=torch.Generator().manual_seed(0))
    keys[:, :, torch.randperm(24, generator=torch.Generator().manual_seed(1))[:bad]] = float("nan")
    for chunk, part in enumerate(keys.split(6, dim=2)):
        cache.write(0, chunk, part, part)
    assert cache.unusable_kept == 0
    cache.begin_compression(4)
    cache.score(0, torch.ones(1, 1, 6, 4))
    assert cache.unusable_kept == int(cache.read(0, 0, 3)[0].isnan().any(-1).sum()) == kept


def test_compressed_chunks_are_not_written_and_nothing_is_written_beyond_the_buffer():
    cache, entries = compressed_cache(), torch.zeros(1, 2, 6, 4)
    cache.write(0, 4, entries, entries)
    for chunk in (1, 5):
        with pytest.raises(RuntimeError, match=f"chunk {chunk} has no room in a KV cache of 30 tokens"):
            cache.write(0, chunk, entries, entries)


def test_the_official_rounds_through_the_cache():
    """goldens/flowcache: kv_orchestration. Five chunks of room, of which one for what is kept."""
    facts, stored = manifest("flowcache/kv_orchestration"), tensors("flowcache/kv_orchestration")
    layers, (_, heads, channels), chunk_tokens = facts["layers"], facts["heads"], facts["chunk_tokens"]
    config = Joint(mix_lambda=facts["mix_lambda"], query_granularity=facts["query_granularity"], kept_order="score")
    assert facts["rounds"][0]["budget_tokens"] == chunk_tokens
    room = facts["total_cache_chunks"] * chunk_tokens
    budget = Budget(chunk_tokens, room, chunk_tokens // 3)
    cache = KvCache(
        layers,
        heads,
        channels,
        chunk_tokens,
        facts["num_chunks"],
        policy=KvPolicy(select=config, budget="1 chunk"),
        budget=budget,
    )
    written = 0
    for index, facts_of_round in enumerate(facts["rounds"]):
        newest = facts_of_round["active"][-1]
        for chunk in range(written, newest + 1):
            for layer in range(layers):
                entries = stored[f"chunk{chunk}.layer{layer}.kv"].transpose(0, 1)[None]
                cache.write(layer, chunk, *entries.split(channels, dim=-1))
        written = newest + 1
        end = facts_of_round["clean"][-1] + 1
        assert cache.exceeds_budget(end)
        before = [cache.positions(layer)[0] for layer in range(layers)]
        length = cache.begin_compression(end)
        for layer in range(layers):
            cache.score(layer, stored[f"round{index}.layer{layer}.query"].transpose(0, 1)[None])
            official = stored[f"round{index}.layer{layer}.indices"].long()
            kept = cache.positions(layer)[0, :, :chunk_tokens]
            expected = before[layer][:, :length].gather(1, official)
            assert torch.equal(kept.sort().values, expected.sort().values)
        if index == 0:  # later ones the official code counts by ranges that are head 0's alone
            by_chunk = cache.positions(0)[0, :, :chunk_tokens] // chunk_tokens
            counts = [[int((head == chunk).sum()) for chunk in facts_of_round["clean"]] for head in by_chunk]
            assert counts == facts_of_round["per_head_kept_per_chunk"]
        assert cache.num_tokens == facts_of_round["next_free"]
    memory = stored[f"round{len(facts['rounds']) - 1}.layer0.memory_after"].transpose(0, 1)
    ours = torch.cat(cache.read(0, 0, written - 1), dim=-1)[0]
    for head in range(heads):
        assert sorted(ours[head].tolist()) == sorted(memory[head, : cache.num_tokens].tolist())
    assert torch.equal(ours[:, chunk_tokens:], memory[:, chunk_tokens : cache.num_tokens])
