"""Stores of finished chunks in codes: where entries stand is nobody's loss, and what is held is counted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.kivi import Kivi
from baselines.quant_videogen import QuantVideoGen
from baselines.quarot import QuaRot
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.kv.store.base import KvStore, StoreShape
from flowcache.kv.store.clusters import cluster, evenly_spread, of_ids
from flowcache.kv.store.float8 import Float8
from flowcache.kv.store.full_precision import FullPrecision
from flowcache.kv.store.integer import Integer
from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind
from flowcache.method import Method
from flowcache.sampler import sample
from tests.kv.test_bias import Newest, NewestPlain
from tests.methods import chunkwise, every_k
from tests.models import magi_goldens, skyreels_goldens, wan_goldens


@dataclass(kw_only=True)
class Exact(Quantised):
    """Its codes are the numbers themselves."""

    lossless: ClassVar[bool] = True

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        return [x.clone()]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]


STORES = [
    Integer(bits=8),
    Integer(bits=4),
    Integer(bits=2),
    Integer(bits=4, group=3, cluster_tokens=2, stages=2),
    Float8(),
    Kivi(bits=4),
    Kivi(bits=2, group=3),
    QuaRot(bits=4, block_tokens=4),
    QuaRot(bits=8, rotation=False),
    QuantVideoGen(bits=4),
    QuantVideoGen(bits=2, stages=3),
]
EACH = pytest.mark.parametrize("store", STORES, ids=lambda store: f"{type(store).__name__}{store.options}")


def with_store(store: KvStore, method: Method | None = None) -> Method:
    method = Method() if method is None else method
    return replace(method, kv=replace(method.kv, store=store))


# A lossless one is the identity, whatever happens.

FEW = {"num_steps": 4}  # chunks are written, finished and selected from as often as with more
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "magi": (magi_goldens, {"num_chunks": 6} | FEW),
    "magi, three passes": (magi_goldens, {"num_chunks": 6} | FEW | magi_goldens.GUIDANCE_3),
    "magi, continuation": (magi_goldens, {"num_chunks": 7, "prefix_frames": 20} | FEW),
    "magi, continuation, three passes": (
        magi_goldens,
        {"num_chunks": 9, "prefix_frames": 30} | FEW | magi_goldens.GUIDANCE_3,
    ),
    "magi, limited sight": (magi_goldens, {"num_chunks": 6, "noise2clean_kvrange": (3, 2, 2, 2)} | FEW),
    "skyreels": (skyreels_goldens, {"num_chunks": 6} | FEW),
    "skyreels, windows": (skyreels_goldens, {"num_chunks": 6, "base_num_frames": 29, "overlap_history": 13} | FEW),
    "wan": (wan_goldens, {}),
    "wan, window and sink": (wan_goldens, {"window_frames": 9, "sink_frames": 3, "num_frames": 24}),
    "wan, window": (wan_goldens, {"window_frames": 6, "num_frames": 18}),
    "wan, near sink": (wan_goldens, {"window_frames": 7, "sink_frames": 2, "num_frames": 18, "relative_rope": True}),
    "wan, first frame alone": (wan_goldens, {"first_frame_alone": True, "num_frames": 13}),
    "wan, continuation": (wan_goldens, {"prefix_frames": 6, "window_frames": 9, "num_frames": 18}),
    "wan, new prompts": (
        wan_goldens,
        {"prompt_starts": (6, 12), "window_frames": 9, "sink_frames": 3, "num_frames": 18, "renew_sink": True},
    ),
    "wan, rolling": (wan_goldens, {"rolling": True, "window_frames": 15, "sink_frames": 3, "num_frames": 24}),
    "wan, guidance": (
        wan_goldens,
        {"solver": "unipc", "num_steps": 4, "num_frames": 9, "guidance_scale": 3.0, "window_frames": 6},
    ),
}
METHODS = {
    "vanilla": Method(),
    "no refresh": Method(refresh_clean_kv=False),
    "every other step": every_k(every=2, warmup_steps=1),
    "flowcache": chunkwise(threshold=0.5, warmup_steps=1, distance="latent"),
}


def latents(setting: str, method: Method) -> Tensor:
    goldens, options = SETTINGS[setting]
    return goldens.latents_of(goldens.small_generation(method, **options))


@functools.cache
def of_vanilla(setting: str) -> Tensor:
    return latents(setting, Method())


@pytest.mark.parametrize(("sink", "newest"), [(0, 0), (1, 0), (0, 1), (2, 1)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_lossless_store_is_the_identity_in_every_way_to_sample(setting, sink, newest):
    store = Exact(newest_chunks=newest, sink_chunks=sink)
    assert torch.equal(latents(setting, with_store(store)), of_vanilla(setting))


@pytest.mark.parametrize("name", ["no refresh", "every other step", "flowcache"])
@pytest.mark.parametrize("setting", ["magi", "magi, three passes", "skyreels, windows", "wan", "wan, window"])
def test_a_lossless_store_is_the_identity_for_every_method(setting, name):
    store, method = Exact(newest_chunks=0, sink_chunks=0), METHODS[name]
    assert torch.equal(latents(setting, with_store(store, method)), latents(setting, method))


@pytest.mark.parametrize(("budget", "newest"), [("1 chunk", 0), ("5 tokens", 0), ("2 chunks", 1), ("31 tokens", 1)])
@pytest.mark.parametrize("timing", ["sound", "published"])
@pytest.mark.parametrize("refreshes", [True, False])
@pytest.mark.parametrize("setting", ["magi", "magi, three passes", "skyreels", "wan"])
def test_a_lossless_store_goes_with_every_selection(setting, budget, timing, refreshes, newest):
    kv = KvPolicy(select=Joint(query_granularity=4, timing=timing), budget=budget)
    method = Method(kv=kv, refresh_clean_kv=refreshes)
    expected = latents(setting, method)
    assert torch.equal(latents(setting, with_store(Exact(newest_chunks=newest), method)), expected)


@given(st.data())
def test_any_order_of_writes_and_finishes_in_any_shape_reads_as_the_plain_store(data):
    layers, heads, channels, tokens, chunks = (data.draw(st.integers(1, 4)) for _ in range(5))
    newest, sink = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    policies = [KvPolicy(store=store) for store in (FullPrecision(), Exact(newest_chunks=newest, sink_chunks=sink))]
    caches = [KvCache(layers, heads, channels, tokens, chunks, policy=policy) for policy in policies]
    random = torch.Generator().manual_seed(0)
    for _ in range(data.draw(st.integers(0, 12))):
        layer, chunk = data.draw(st.integers(0, layers - 1)), data.draw(st.integers(0, chunks - 1))
        action = data.draw(st.sampled_from(["write", "write", "finish", "to be written", "read"]))
        key, value = torch.randn(2, 1, heads, tokens, channels, generator=random)
        for cache in caches:
            if action == "write":
                cache.write(layer, chunk, key, value)
            elif action != "read":
                cache.finish(chunk, is_final=action == "finish")
        if action == "read":
            plain, ours = (cache.read(layer, 0, chunk) for cache in caches)
            assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))
    for layer in range(layers):
        plain, ours = (cache.read(layer, 0, chunks - 1) for cache in caches)
        assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))


# Any shape, any budget.


@EACH
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 13),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.data(),
)
def test_a_block_of_any_shape_comes_back_as_near_as_its_bits_say(store, heads, tokens, channels, dtype, data):
    store = store.fresh()
    store.allocate(StoreShape(2, 1, heads, 2 * tokens, channels, dtype, "cpu", block=tokens))
    scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 300.0]))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    key, value = (scale * torch.randn(2, 1, heads, tokens, channels, generator=random)).to(dtype)
    store.write(1, slice(tokens, 2 * tokens), key, value)
    store.settle(1, slice(tokens, 2 * tokens))
    for entries, back in zip((key, value), store.read(1, slice(tokens, 2 * tokens)), strict=True):
        assert (back.dtype, back.shape) == (entries.dtype, entries.shape)
        assert back.isfinite().all()
        assert (back.float() - entries.float()).norm() <= 1.1 * entries.float().norm() + 1e-6
    assert not store.read(0, slice(0, 2 * tokens))[0].any()  # another layer's


@EACH
@pytest.mark.parametrize("budget", ["1 token", "5 tokens", "24 tokens", "1.5 chunks", "3 chunks"])
def test_every_store_goes_with_any_budget_and_counts_no_more_than_it_allocated(store, budget):
    kv = KvPolicy(select=NewestPlain(), store=store, budget=budget)
    generation, held = magi_goldens.small_generation(Method(kv=kv), num_chunks=6, **FEW), []
    allocated = generation.kv_bytes_allocated
    for _ in sample(generation, observe=lambda row, _: held.append(generation.kv_bytes_used)):
        assert generation.kv_bytes_allocated == allocated
    assert generation.kv_compressions > 0
    assert generation.latents.isfinite().all()
    assert max(held) <= allocated


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_selected_again_and_again_is_rounded_once(bits, dtype):
    kv = KvPolicy(select=Newest(), store=Integer(bits=bits, sink_chunks=0), budget="7 tokens")
    cache = KvCache(1, 2, 5, 6, 9, policy=kv, budget=Budget(7, 30, 2), dtype=dtype)
    cache.write(0, 0, *torch.randn(2, 1, 2, 6, 5).to(dtype))
    cache.finish(0)
    first = cache.read(0, 0, 0)[0].clone()
    store = cache._store
    for _ in range(5):
        store.keep(0, torch.tensor([[[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]]), length=6, held=6)
        assert torch.equal(store.read(0, slice(0, 6))[0], first)
    store.keep(0, torch.tensor([[[1, 3, 5], [0, 2, 4]]]), length=6, held=6)
    assert torch.equal(store.read(0, slice(0, 3))[0][0, 1], first[0, 1, ::2])
    assert torch.equal(store.read(0, slice(0, 3))[0][0, 0], first[0, 0, 1::2])


def test_a_selection_is_made_before_rounding():
    """The kept keys of a chunk are those that the selector chose of exact ones, rounded."""
    key = torch.randn(1, 2, 24, 4, generator=torch.Generator().manual_seed(0))
    store = Integer(bits=4, sink_chunks=0, newest_chunks=3)  # nothing is settled before the selection
    cache = KvCache(
        1, 2, 4, 6, 5, policy=KvPolicy(select=Newest(), store=store, budget="7 tokens"), budget=Budget(7, 30, 2)
    )
    for chunk, part in enumerate(key.split(6, dim=2)):
        cache.write(0, chunk, part, part)
    for chunk in range(3):
        cache.finish(chunk)
    cache.begin_compression(3)
    cache.score(0, key[:, :, 18:])
    alone = Integer(bits=4)
    alone.allocate(StoreShape(1, 1, 2, 7, 4, torch.float32, "cpu"))
    alone.write(0, slice(0, 7), key[:, :, 11:18], key[:, :, 11:18])
    alone.settle(0, slice(0, 7))
    assert torch.equal(cache.read(0, 0, 2)[0], alone.read(0, slice(0, 7))[0])
    assert torch.equal(cache.read(0, 3, 3)[0], key[:, :, 18:])  # the chunk being denoised is exact


# What is held, and until when.


def test_only_what_is_finished_is_rounded_and_neither_the_sink_nor_the_newest():
    store = Integer(bits=2, newest_chunks=1, sink_chunks=1)
    cache = KvCache(1, 1, 8, 4, 6, policy=KvPolicy(store=store), open_chunks=2)
    key = torch.randn(1, 1, 24, 8, generator=torch.Generator().manual_seed(0))
    for chunk, part in enumerate(key.split(4, dim=2)):
        cache.write(0, chunk, part, part)
        if chunk:
            cache.finish(chunk - 1, is_final=False)
            before = key[:, :, 4 * (chunk - 1) : 4 * chunk]
            cache.write(0, chunk - 1, before, before)  # clean
    back = cache.read(0, 0, 5)[0]
    exact = [torch.equal(a, b) for a, b in zip(back.split(4, dim=2), key.split(4, dim=2), strict=True)]
    assert exact == [True, False, False, False, True, True]


@pytest.mark.parametrize("store", [Integer(bits=4, group=8), Integer(bits=2, group=16, cluster_tokens=4)])
def test_bytes_are_those_of_packed_codes_scales_and_centroids(store):
    layers, heads, tokens, channels, chunks = 3, 2, 12, 16, 10
    cache = KvCache(layers, heads, channels, tokens, chunks, policy=KvPolicy(store=store), open_chunks=2)
    entries = 2 * heads * tokens * channels
    groups = channels // store.group
    a_token = channels * store.bits // 8 + groups * 4  # scale and lowest number in 16 bits
    a_chunk = 2 * heads * tokens * a_token
    if store.cluster_tokens:
        a_chunk += 2 * heads * (tokens + 3 * channels * 2)  # ids, and three centroids in 16 bits
    pages, settled = 3, 8  # two in the making and the sink; and all but the sink and the last
    assert cache.bytes_allocated == layers * (pages * entries * 4 + settled * a_chunk) + chunks * entries * 4
    assert cache.bits_a_number == 8 * a_chunk / entries
    codes = 2 * heads * tokens * channels * store.bits // 8
    assert cache.sizes == {
        "entries": layers * pages * entries * 4,
        "codes": layers * settled * codes,
        "scales": layers * settled * (a_chunk - codes),
        "read_buffer": chunks * entries * 4,
        "selection": 0,
    }
    of_buffer = chunks * entries * 4
    assert cache.bytes_used == of_buffer
    for chunk in range(4):
        part = torch.randn(1, heads, tokens, channels)
        for layer in range(layers):
            cache.write(layer, chunk, part, part)
        if chunk:
            cache.finish(chunk - 1)
    assert cache.bytes_used == of_buffer + layers * (2 * entries * 4 + 2 * a_chunk)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens, wan_goldens], ids=["magi", "skyreels", "wan"])
def test_a_longer_video_takes_codes_alone(goldens):
    """Beside the layer that is read into the buffer."""

    def allocated(store: KvStore, num_chunks: int) -> int:
        length = {"num_frames": 3 * num_chunks} if goldens is wan_goldens else {"num_chunks": num_chunks}
        if goldens is skyreels_goldens:
            length["base_num_frames"] = 477
        return goldens.small_generation(Method(kv=KvPolicy(store=store)), **length).kv_bytes_allocated

    full, ours = (allocated(store, 24) - allocated(store, 14) for store in (FullPrecision(), Integer(bits=4)))
    layers = 2
    assert full / layers < ours < full * (1 / layers + 5.1 / 32 + 16 / 32 / 8)


def test_rooms_that_are_too_few_are_said():
    cache = KvCache(1, 1, 4, 2, 6, policy=KvPolicy(store=Integer(bits=4, sink_chunks=0)), open_chunks=2)
    part = torch.zeros(1, 1, 2, 4)
    for chunk in range(2):
        cache.write(0, chunk, part, part)
    with pytest.raises(RuntimeError, match="Integer has no room for slots from 4 on: more chunks are in the making"):
        cache.write(0, 2, part, part)


# Nothing leaks.


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens, wan_goldens], ids=["magi", "skyreels", "wan"])
@pytest.mark.parametrize("store", [Integer(bits=2, cluster_tokens=4), Kivi(bits=2)], ids=["int2", "kivi"])
def test_interleaved_generations_are_each_as_if_alone(goldens, store):
    method = with_store(store)
    length = {"num_frames": 18} if goldens is wan_goldens else {"num_chunks": 5}

    def made(seed: int) -> Any:
        return goldens.small_generation(method, seed=seed, **length)

    def latents_of(generation: Any) -> Tensor:
        return torch.cat([latent for _, latent in sample(generation)], dim=1)

    alone = [latents_of(made(seed)) for seed in (0, 1)]
    both = [made(seed) for seed in (0, 1)]
    made_in_turns: list[list[Tensor]] = [[], []]
    for pairs in zip_longest(*(sample(each) for each in both)):
        for of_one, (_, latent) in zip(made_in_turns, pairs, strict=True):
            of_one.append(latent)
    for of_one, expected in zip(made_in_turns, alone, strict=True):
        assert torch.equal(torch.cat(of_one, dim=1), expected)
    assert torch.equal(latents_of(made(0)), alone[0])


def test_a_cleared_cache_remembers_nothing():
    cache = KvCache(2, 1, 4, 3, 4, policy=KvPolicy(store=Integer(bits=4, sink_chunks=0)), open_chunks=2)
    used = cache.bytes_used
    part = torch.randn(1, 1, 3, 4)
    for _ in range(3):
        for chunk in range(4):
            for layer in range(2):
                cache.write(layer, chunk, part, part)
            cache.finish(chunk)
        cache.clear()
        assert cache.bytes_used == used
        assert not cache.read(1, 0, 3)[0].any()


# Parts.


def test_clusters_are_the_nearest_and_an_empty_one_stays_where_it_is():
    random = torch.Generator().manual_seed(0)
    centres = 50 * torch.randn(1, 2, 3, 4, generator=random)
    x = centres.repeat_interleave(5, dim=2) + torch.randn(1, 2, 15, 4, generator=random)
    far = torch.full((1, 2, 1, 4), 1e3)
    ids, centroids = cluster(x, torch.cat([evenly_spread(x, 3), far], dim=2), iterations=2)
    assert torch.equal(ids, torch.tensor([0, 1, 2], dtype=torch.uint8).repeat_interleave(5).expand(1, 2, -1))
    torch.testing.assert_close(centroids[:, :, :3], x.unflatten(2, (3, 5)).mean(3))
    assert torch.equal(centroids[:, :, 3:], far)
    assert torch.equal(of_ids(centroids, ids)[:, :, 7], centroids[:, :, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integer(bits=3), "bits=3 must be one of 2, 4, 8"),
        (lambda: Integer(bits=4, group=0), "group=0 must be a whole number of at least 1"),
        (lambda: Integer(bits=4, sink_chunks=-1), "sink_chunks=-1 must be a whole number of at least 0"),
        (lambda: Integer(bits=4, correction="no"), "correction='no' must be true or false"),
        (lambda: Kivi(bits=5), "bits=5 must be one of 2, 4, 8"),
        (lambda: Kivi(bits=4, group=0), "group=0 must be a whole number of at least 1"),
        (lambda: QuaRot(bits=4, block_tokens=0), "block_tokens=0 must be a whole number"),
        (lambda: QuaRot(bits=4, rotation=1), "rotation=1 must be true or false"),
        (lambda: QuantVideoGen(bits=8), "bits=8 must be 2 or 4"),
        (lambda: QuantVideoGen(bits=2, clusters=257), "clusters=257 must be a whole number from 1 to 256"),
        (lambda: QuantVideoGen(bits=2, stages=0), "stages=0 must be a whole number of at least 1"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_8_bit_floating_point_is_refused_where_torch_has_none(monkeypatch):
    monkeypatch.delattr(torch, "float8_e4m3fn")
    with pytest.raises(ValueError, match="has no 8-bit floating point; choose kv/store=int8"):
        Float8()
