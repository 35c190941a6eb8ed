"""Finished chunks in host memory: the same videos to the bit, with little on the device, and the next layer fetched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.store.base import StoreShape
from flowcache.kv.store.host import HostMemory
from flowcache.method import Method
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import every_k, method
from tests.models import magi_goldens, skyreels_goldens, wan_goldens
from tests.models.magi_goldens import GUIDANCE_3

SHAPE = StoreShape(
    num_layers=3,
    batch_size=1,
    num_heads=2,
    capacity=12,
    channels=4,
    dtype=torch.float32,
    device="cpu",
    block=4,
    open=8,
    settled=8,
)
WHOLE = every_k(every=2, warmup_steps=1)
BUDGET = method(WHOLE.reuse, budget="1 chunk", forecast=Linear())
CASES = {
    "magi": (magi_goldens, {"num_chunks": 5}, WHOLE),
    "magi_guided": (magi_goldens, {"num_chunks": 4, **GUIDANCE_3}, WHOLE),
    "magi_budget": (magi_goldens, {"num_chunks": 5}, BUDGET),
    "magi_prefix": (magi_goldens, {"num_chunks": 5, "prefix_frames": 12}, WHOLE),
    "skyreels": (skyreels_goldens, {}, WHOLE),
    "skyreels_budget": (skyreels_goldens, {}, BUDGET),
    "wan": (wan_goldens, {"num_frames": 15}, WHOLE),
    "wan_window": (wan_goldens, {"num_frames": 15, "window_frames": 9, "sink_frames": 3}, WHOLE),
    "wan_budget": (wan_goldens, {"num_frames": 15}, BUDGET),
}


def run(goldens, settings: dict, method: Method) -> tuple[torch.Tensor, Trace]:
    trace = Trace()
    generation = goldens.small_generation(method, **settings)
    return torch.cat([latent for _, latent in sample(generation, trace)], dim=1), trace


@pytest.mark.parametrize("case", CASES)
def test_a_video_is_the_same_to_the_bit(case):
    goldens, settings, whole = CASES[case]
    away = replace(whole, kv=replace(whole.kv, store=HostMemory()))
    (ours, trace), (theirs, other) = run(goldens, settings, away), run(goldens, settings, whole)
    assert torch.equal(ours, theirs)
    assert trace.work == other.work
    assert trace.kv_bits == 32
    assert trace.kv_bytes_by_use["host"] > 0


def test_the_device_holds_what_is_in_the_making_and_two_layers():
    full, away = (
        magi_goldens.small_generation(Method(kv=KvPolicy(store=store)), num_chunks=12).kv_bytes_by_use
        for store in (KvPolicy().store, HostMemory())
    )
    chunk = full["entries"] // 12
    layers = magi_goldens.golden_dit("mlp_base").config.num_layers
    assert away == {
        "entries": 4 * chunk,  # those being denoised
        "host": 11 * chunk,  # the last one is read by nobody
        "read_buffer": 2 * full["entries"] // layers,
    }


def filled() -> tuple[HostMemory, torch.Tensor]:
    store = HostMemory()
    store.allocate(SHAPE)
    entries = torch.randn(2, 3, 1, 2, 12, 4, generator=torch.Generator().manual_seed(0))
    for layer in range(3):
        for start in (0, 4):
            store.write(layer, slice(start, start + 4), *entries[:, layer, :, :, start : start + 4])
            store.settle(layer, slice(start, start + 4))
        store.write(layer, slice(8, 12), *entries[:, layer, :, :, 8:])
    return store, entries


def test_the_next_layer_is_there_before_it_is_asked_for():
    store, entries = filled()
    for layer in (0, 1, 2, 0, 1):
        key, value = store.read(layer, slice(0, 12))
        assert torch.equal(torch.stack([key, value]), entries[:, layer])
        ahead = (layer + 1) % 3
        assert (store._ahead_layer, store._ahead_starts) == (ahead, {0, 4})
        assert torch.equal(store._ahead[:, :, :, :8], entries[:, ahead, :, :, :8])


def test_what_changes_after_it_was_fetched_is_fetched_again():
    store, entries = filled()
    store.read(0, slice(0, 12))
    new = torch.ones(1, 2, 4, 4)
    store.write(1, slice(4, 8), new, new)
    assert torch.equal(store.read(1, slice(4, 8))[0], new)
    assert torch.equal(store.read(1, slice(0, 4))[0], entries[0, 1, :, :, :4])
    kept = torch.tensor([[[1, 2], [0, 5]]])
    store.keep(2, kept, length=8, held=12)  # of a layer that was fetched
    read = store.read(2, slice(0, 6))[1]
    for head, chosen in enumerate(kept[0].tolist()):
        assert torch.equal(read[0, head], entries[1, 2, 0, head, [*chosen, 8, 9, 10, 11]])


def test_it_is_refused_where_there_is_no_cache_and_where_heads_keep_frames_of_their_own():
    away = KvPolicy(store=HostMemory())
    with pytest.raises(ValueError, match="HostMemory is how a cache is stored, and attention='native' has none"):
        skyreels_goldens.small_generation(Method(kv=away, attention="native"))
