"""Heads that keep frames of their own: what each holds and attends to, in any network, chunks of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from baselines.forcing_kv import ForcingKv
from flowcache.kv.head_map import HeadMap
from flowcache.kv.heads import HeadCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.by_head import HeadSelector, KeepSet
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.integer import Integer
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.methods import by_row, changed, every_k, method, vanilla
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

LAYERS, HEADS, CHANNELS, TOKENS = 2, 4, 6, 4
ALL = 10**6  # frames: more than any video has


@dataclass(kw_only=True)
class Kinds(HeadSelector):
    """Heads by a rule, of any network."""

    rule: Callable[[int, int], Sequence[KeepSet]] = field(repr=False)

    def check_heads(self, num_layers: int, num_heads: int) -> None:
        pass

    def keep_sets(self, layer: int, finished_chunks: int) -> Sequence[KeepSet]:
        return self.rule(layer, finished_chunks)


def always(*keeps: KeepSet) -> Kinds:
    return Kinds(rule=lambda layer, finished: keeps)


def new_cache(select: HeadSelector, lengths: Sequence[int], open_chunks: int = 1, **options) -> HeadCache:
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    policy = KvPolicy(select=select, **options)
    return HeadCache(LAYERS, HEADS, CHANNELS, TOKENS, TOKENS, starts, open_chunks, policy)


def draw(lengths: Sequence[int], seed: int = 0) -> Tensor:
    """Query, key and value of every layer, frame and token: [3, R, 1, G, tokens, E]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, LAYERS, 1, HEADS, sum(lengths) * TOKENS, CHANNELS, generator=random)


def run(cache: HeadCache, drawn: Tensor, lengths: Sequence[int]) -> list[list[Tensor]]:
    """Every chunk once noisy and once clean, as a model that encodes it alone does: the clean outputs by layer."""
    outputs, first = [], 0
    for length in lengths:
        end = first + length
        tokens = slice(first * TOKENS, end * TOKENS)
        for clean in (False, True):
            if clean:
                for frame in range(first, end):
                    cache.finish(frame, is_final=False)
            own = []
            for layer in range(LAYERS):
                query, key, value = (each[layer, :, :, tokens] * (1 if clean else 0.5) for each in drawn)
                cache.write(layer, first, key, value)
                own.append(cache.attend(layer, query, 0, end - 1))
        outputs.append(own)
        first = end
    return outputs


def kept_frames(keep: KeepSet, lengths: Sequence[int], chunk: int) -> list[int]:
    """By hand: the whole frames that chunk ``chunk`` finds."""
    end = sum(lengths[:chunk])
    sink = list(range(min(keep.sink_frames, end)))
    return sink + [f for f in range(max(0, end - keep.recent_frames), end) if f not in sink]


chunks = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@settings(deadline=None, max_examples=30)
@given(chunks, st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))
def test_each_head_attends_to_its_own_frames_and_the_chunk_itself(lengths, sink, few, many, split):
    static, dynamic = tuple(range(split)), tuple(range(split, HEADS))
    keeps = (KeepSet(static, sink, few), KeepSet(dynamic, sink, many))
    drawn = draw(lengths)
    cache = new_cache(always(*keeps), lengths)
    allocated = cache.bytes_allocated
    for chunk, own in enumerate(run(cache, drawn, lengths)):
        start, end = sum(lengths[:chunk]), sum(lengths[: chunk + 1])
        for layer, keep in ((layer, keep) for layer in range(LAYERS) for keep in keeps if keep.heads):
            frames = [*kept_frames(keep, lengths, chunk), *range(start, end)]
            places = torch.cat([torch.arange(f * TOKENS, (f + 1) * TOKENS) for f in frames])
            heads = list(keep.heads)
            query, key, value = drawn[:, layer][:, :, heads]
            expected = F.scaled_dot_product_attention(
                query[:, :, start * TOKENS : end * TOKENS], key[:, :, places], value[:, :, places]
            )
            torch.testing.assert_close(own[layer][:, heads], expected, atol=1e-5, rtol=1e-5)
    assert cache.bytes_allocated == allocated


def test_patches_are_those_least_like_the_next_frame_of_what_left_last():
    """By hand: token 1 of frame 2 and token 0 of frame 3 turn round; nothing else changes."""
    lengths, dynamic = [3, 3, 3], (1, 3)
    drawn = torch.ones(3, LAYERS, 1, HEADS, 9 * TOKENS, CHANNELS)
    key = drawn[1].unflatten(3, (9, TOKENS))
    key[:, :, dynamic, 3:, 1] *= -1  # of frame 2 the next frame's is another
    key[:, :, dynamic, 4:, 0] *= -1
    key[:, :, [0, 2], 1:, 3] *= -1  # of heads that are not asked
    keeps = (KeepSet((0, 2), 1, 1), KeepSet(dynamic, 1, 1, 1, patches=4))
    cache = new_cache(always(*keeps), lengths)
    run(cache, drawn, lengths[:2])
    for layer in range(LAYERS):
        cache._take_in(layer)
        held = {head: places.tolist() for heads, places in cache.positions_of(layer) for head in heads}
        assert held[0] == held[2] == [*range(4), *range(5 * TOKENS, 6 * TOKENS)]
        assert held[1] == held[3]
        patches = held[1][TOKENS : 2 * TOKENS]
        assert {2 * TOKENS + 1, 3 * TOKENS + 0} <= set(patches)
        assert len(patches) == TOKENS
        assert patches == sorted(patches)
        assert held[1] == [*range(4), *patches, *range(5 * TOKENS, 6 * TOKENS)]


def test_patches_divide_a_frame_or_are_fewer():
    cache = new_cache(always(KeepSet((0, 1, 2, 3), 1, 1, 1, patches=3)), [3, 3, 3])
    assert cache._patches_of(KeepSet((), 0, 0, 1, patches=3)) == 2
    assert cache._patches_of(KeepSet((), 0, 0, 1, patches=9)) == TOKENS
    run(cache, draw([3, 3, 3]), [3, 3, 3])


def test_heads_in_another_order_give_the_same_in_that_order():
    lengths, order = [3, 2, 3, 3], [2, 0, 3, 1]
    drawn, place = draw(lengths), {head: i for i, head in enumerate(order)}

    def kinds(of: Callable[[int], int]) -> Kinds:
        static, dynamic = tuple(map(of, (0, 3))), tuple(map(of, (1, 2)))
        return always(KeepSet(static, 1, 1), KeepSet(dynamic, 1, 2, 1, patches=2))

    expected = run(new_cache(kinds(lambda head: head), lengths), drawn, lengths)
    given_ = run(new_cache(kinds(place.__getitem__), lengths), drawn[:, :, :, order], lengths)
    for own, other in zip(expected, given_, strict=True):
        for layer in range(LAYERS):
            torch.testing.assert_close(other[layer], own[layer][:, order], atol=1e-6, rtol=1e-6)


def test_chunks_that_run_together_stand_whole_until_their_final_keys_have_attended():
    """Three chunks at a time, all written before any attends: what is taken in is what is finished, in every layer."""
    lengths, keep = [2] * 5, KeepSet((0, 1, 2, 3), 1, 1)
    drawn, cache = draw(lengths), new_cache(always(keep), lengths, open_chunks=3)

    def forward(newest: int, members: Sequence[int]) -> None:
        for layer in range(LAYERS):
            query, key, value = drawn[:, layer].unflatten(3, (5, -1))
            for chunk in members:
                cache.write(layer, 2 * chunk, key[:, :, chunk], value[:, :, chunk])
                out = cache.attend(layer, query[:, :, chunk], 0, 2 * chunk + 1)
                done = min(chunk, max(0, newest - 2))  # finished ones before it
                frames = [*kept_frames(keep, lengths, done), *range(2 * done, 2 * chunk + 2)]
                places = torch.cat([torch.arange(f * TOKENS, (f + 1) * TOKENS) for f in frames])
                flat = drawn[:, layer][:, :, :, places]
                torch.testing.assert_close(out, F.scaled_dot_product_attention(query[:, :, chunk], *flat[1:]))
                assert cache.num_keys(0, 2 * chunk + 1) == len(places)

    forward(2, [0, 1, 2])
    for newest in (3, 4):
        for frame in range(2 * (newest - 3), 2 * (newest - 2)):
            cache.finish(frame, is_final=False)
        forward(newest, range(newest - 3, newest + 1))
    with pytest.raises(
        RuntimeError, match=r"have no room .* that holds 6 frames from 4 on whole; a policy must compute"
    ):
        cache.write(0, 9, *drawn[1:, 0, :, :, : 2 * TOKENS])


def test_some_tokens_of_a_chunk_take_their_own_places_in_every_kind_of_heads():
    """Written in part over what stood there, a chunk comes to what it does when it is written as a whole."""
    lengths = [2, 3, 1]
    keeps = (KeepSet((0, 2), 1, 1), KeepSet((1, 3), 0, 2))
    drawn, second = draw(lengths), slice(2 * TOKENS, 5 * TOKENS)
    places = torch.tensor([0, 3, 4, 10])
    whole, in_part = new_cache(always(*keeps), lengths), new_cache(always(*keeps), lengths)
    for cache in (whole, in_part):
        run(cache, drawn[..., : 2 * TOKENS, :], [2])
    with pytest.raises(RuntimeError, match="chunk 2 computes in part and never did as a whole"):
        in_part.write_some(0, 2, places, *drawn[1:, 0, :, :, second][:, :, :, places])
    for layer in range(LAYERS):
        query, key, value = drawn[:, layer, :, :, second]
        old_key, old_value = key.clone(), value.clone()
        for old in (old_key, old_value):
            old[:, :, places] = 9.0
        in_part.write(layer, 2, old_key, old_value)
        assert not torch.equal(in_part.attend(layer, query, 0, 4), whole_output(whole, layer, key, value, query))
        in_part.write_some(layer, 2, places, key[:, :, places], value[:, :, places])
        some = in_part.attend(layer, query[:, :, places], 0, 4)
        expected = whole_output(whole, layer, key, value, query)
        torch.testing.assert_close(some, expected[:, :, places])


def whole_output(cache: HeadCache, layer: int, key: Tensor, value: Tensor, query: Tensor) -> Tensor:
    cache.write(layer, 2, key, value)
    return cache.attend(layer, query, 0, 4)


def test_bytes_are_those_of_each_kinds_buffer_whatever_the_length():
    keeps = (KeepSet((0,), 1, 1), KeepSet((1, 2, 3), 0, 4))
    cache, longer = (new_cache(always(*keeps), [3] * n) for n in (8, 80))
    frames = 1 * (2 + 3) + 3 * (4 + 3)
    assert cache.bytes_allocated == longer.bytes_allocated == LAYERS * frames * TOKENS * CHANNELS * 4 * 2
    assert new_cache(always(*keeps), [3] * 8, store=Bfloat16()).bytes_allocated == cache.bytes_allocated / 2
    run(cache, draw([3] * 4), [3] * 4)
    assert cache.bytes_used <= cache.bytes_allocated
    assert cache.num_tokens == (1 * 2 + 3 * 4) / 4 * TOKENS + 3 * TOKENS  # the newest chunk still stands whole


def test_kinds_that_keep_as_much_share_a_call_and_those_that_keep_everything_drop_nothing():
    cache = new_cache(always(KeepSet((0, 2), 1, 0), KeepSet((1,), 0, 1), KeepSet((3,), 0, 3)), [3] * 3)
    assert [len(calls) for calls in cache._calls] == [2, 2]
    whole = new_cache(always(KeepSet((0, 1, 2, 3), 0, ALL)), [3] * 3)
    run(whole, draw([3] * 3), [3] * 3)
    assert whole.num_compressions == 0


def test_a_cleared_cache_is_as_new():
    keeps, lengths = (KeepSet((0, 1), 1, 1), KeepSet((2, 3), 1, 1, 1, patches=2)), [3] * 3
    cache, new = new_cache(always(*keeps), lengths), new_cache(always(*keeps), lengths)
    run(cache, draw(lengths, seed=1), lengths)
    cache.clear()
    pairs = zip(run(cache, draw(lengths), lengths), run(new, draw(lengths), lengths), strict=True)
    assert all(torch.equal(one, other) for own, others in pairs for one, other in zip(own, others, strict=True))


# In models.


def by_head(*keeps: KeepSet, **shared) -> object:
    return vanilla(select=always(*keeps), attention="cached", **shared)


def one_kind(heads: int, sink: int, recent: int) -> KeepSet:
    return KeepSet(tuple(range(heads)), sink, recent)


def heads_of(goldens) -> int:
    return goldens.golden_network().config.num_attention_heads


@pytest.mark.parametrize("split", [False, True], ids=["one kind", "two calls"])
@pytest.mark.parametrize(
    ("goldens", "window", "options"),
    [
        (wan_goldens, (0, ALL), {}),
        (wan_goldens, (1, 3), {"window_frames": 7, "sink_frames": 1}),
        (wan_goldens, (0, 2), {"window_frames": 5, "first_frame_alone": True, "num_frames": 13}),
        (wan_goldens, (0, ALL), {"prefix_frames": 6}),
        (skyreels_goldens, (0, ALL), {}),
        (skyreels_goldens, (0, ALL), {"num_chunks": 8}),
    ],
    ids=["wan", "wan with a window", "wan with a single first frame", "wan with a prefix", "skyreels", "two windows"],
)
def test_heads_that_all_keep_the_window_are_the_window(goldens, window, options, split):
    heads = heads_of(goldens)
    keeps = [one_kind(heads, *window)]
    if split:  # of the same frames, but not of as many at every time
        sink, recent = window
        keeps = [KeepSet((0,), sink, recent), KeepSet(tuple(range(1, heads)), sink, recent, 0)]
    expected = goldens.latents_of(goldens.small_generation(vanilla(attention="cached"), **options))
    given_ = goldens.latents_of(goldens.small_generation(by_head(*keeps), **options))
    torch.testing.assert_close(given_, expected, atol=2e-5, rtol=2e-5)


def test_chunks_that_compute_in_part_mind_no_heads():
    def some(row: Row) -> Decision:
        tokens = {step.chunk: (torch.arange(8) % 3 != step.step % 3)[None] for step in row.steps if step.step}
        return Decision(row.chunks, tokens)

    made = by_row(some, uses=("tokens",))
    keeps = [one_kind(heads_of(skyreels_goldens), 0, ALL)]
    given_ = changed(made, select=always(*keeps))
    expected, own = (skyreels_goldens.latents_of(skyreels_goldens.small_generation(each)) for each in (made, given_))
    torch.testing.assert_close(own, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("goldens", [wan_goldens, skyreels_goldens], ids=["wan", "skyreels"])
def test_interleaved_generations_are_each_as_if_alone(goldens):
    heads = heads_of(goldens)
    keeps = (KeepSet((0,), 1, 1), KeepSet(tuple(range(1, heads)), 1, 1, 1, patches=4))

    def generations() -> list:
        return [goldens.small_generation(by_head(*keeps), seed=seed) for seed in (0, 1)]

    alone = [goldens.latents_of(each) for each in generations()]
    together: list[list[Tensor]] = [[], []]
    for pair in zip(*map(sample, generations()), strict=True):
        for own, (_, latent) in zip(together, pair, strict=True):
            own.append(latent)
    assert all(torch.equal(torch.cat(own, dim=1), other) for own, other in zip(together, alone, strict=True))
    assert not torch.equal(*alone)


@pytest.mark.parametrize("goldens", [wan_goldens, skyreels_goldens], ids=["wan", "skyreels"])
def test_counted_flops_are_those_that_run(goldens, monkeypatch):
    heads = heads_of(goldens)
    keeps = (KeepSet((0,), 1, 0), KeepSet(tuple(range(1, heads)), 1, 1, 1, patches=4))
    counted, inside, attend, kernel = [], [], HeadCache.attend, F.scaled_dot_product_attention

    def attending(*args, **kwargs) -> Tensor:
        inside.append(True)
        try:
            return attend(*args, **kwargs)
        finally:
            inside.pop()

    def counting(query: Tensor, key: Tensor, value: Tensor, **kwargs) -> Tensor:
        if inside:
            counted.append(4 * query.numel() * key.shape[-2])
        return kernel(query, key, value, **kwargs)

    monkeypatch.setattr(HeadCache, "attend", attending)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    trace = Trace()
    length = {} if goldens is wan_goldens else {"num_chunks": 8}
    generation = goldens.small_generation(by_head(*keeps), **length)
    goldens.latents_of(generation, trace)
    assert counted
    assert sum(work.self_attention_flops for _, work in trace.work) == sum(counted)
    whole, everything = Trace(), goldens.small_generation(vanilla(attention="cached"), **length)
    goldens.latents_of(everything, whole)
    assert trace.flops < whole.flops
    assert generation.kv_bytes_allocated <= everything.kv_bytes_allocated  # equal where all of a window run together
    if goldens is wan_goldens:
        assert generation.kv_bytes_allocated < everything.kv_bytes_allocated
        assert generation.paper_flops(trace) < everything.paper_flops(whole)


@pytest.mark.parametrize("refresh", [True, False])
def test_chunks_that_skip_steps_still_find_what_their_heads_keep(refresh):
    keeps = (KeepSet((0,), 0, 1), KeepSet((1, 2), 0, 3))
    reusing = every_k(every=2, warmup_steps=1, select=always(*keeps), refresh_clean_kv=refresh)
    generation = wan_goldens.small_generation(reusing, steps=(1000, 900, 750, 500, 250))
    assert wan_goldens.latents_of(generation).isfinite().all()
    for cache in generation.caches:
        for heads, places in cache.positions_of(0):
            frames = sorted({place // 4 for place in places.tolist()})
            assert frames == list(range(9 - (1 if heads == (0,) else 3), 12))


def head_map() -> HeadMap:
    return HeadMap(name="made", sha256="0", mass=(((0.25,) * 4,) * 4,) * 2, chunk_frames=2, provenance={})


def test_what_does_not_go_with_heads_is_refused_before_any_work():
    select = always(one_kind(4, 1, 1))
    with pytest.raises(ValueError, match="bounds what every head keeps, and Kinds keeps frames by head; choose budget"):
        KvPolicy(select=select, budget="2 chunks")
    with pytest.raises(ValueError, match="Integer holds finished chunks as wholes"):
        new_cache(select, [3, 3], store=Integer(bits=8))
    with pytest.raises(ValueError, match="which MAGI-1 cannot do; choose kv=joint"):
        magi_goldens.small_generation(vanilla(select=select))
    with pytest.raises(ValueError, match="attention='native' has none; choose attention='cached'"):
        skyreels_goldens.small_generation(vanilla(select=select))
    rolling = {"rolling": True, "window_frames": 21, "sink_frames": 3}
    with pytest.raises(ValueError, match=r"rolling=true sees its sink as if it were new, and Kinds .* choose"):
        wan_goldens.small_generation(vanilla(select=select), **rolling)
    with pytest.raises(ValueError, match="Kinds drops keys that a new prompt encodes anew; choose another selector"):
        wan_goldens.small_generation(vanilla(select=select), prompt_starts=(6,))
    with pytest.raises(ValueError, match="Kinds must put each of layer 0's heads into one kind"):
        new_cache(always(KeepSet((0, 1), 1, 1), KeepSet((1, 2), 1, 1)), [3, 3])
    with pytest.raises(ValueError, match=r"ForcingKv needs heads that were sorted .* experiments\.calibrate"):
        wan_goldens.small_generation(method(Never(), select=ForcingKv()))
    with pytest.raises(ValueError, match="the heads made are of 2 layers of 4 heads, and this network has 3 of 3"):
        wan_goldens.small_generation(method(Never(), select=ForcingKv(heads=head_map())))


def test_a_mean_over_heads_is_exact():
    cache = new_cache(always(KeepSet((0,), 0, 1), KeepSet((1, 2, 3), 0, 2)), [3] * 3)
    run(cache, draw([3] * 2), [3] * 2)
    assert cache.num_keys(0, 8) == Fraction((1 * 1 + 3 * 2) * TOKENS, 4) + 3 * TOKENS
    assert cache.num_keys(0, 5) == Fraction((1 * 1 + 3 * 2) * TOKENS, 4) + 3 * TOKENS  # finished: as it was encoded
