"""Stores: what is read is what was written, as precisely as they say, and is moved when the cache is compressed."""

from __future__ import annotations

import pytest
import torch

from flowcache.kv.policy import KvPolicy
from flowcache.kv.store.base import KvStore, StoreShape
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.full_precision import FullPrecision
from flowcache.method import Method
from flowcache.sampler import sample
from tests.models import magi_goldens, skyreels_goldens

SHAPE = StoreShape(num_layers=2, batch_size=1, num_heads=3, capacity=8, channels=4, dtype=torch.float32, device="cpu")
STORES = pytest.mark.parametrize(("store", "type_"), [(FullPrecision(), torch.float32), (Bfloat16(), torch.bfloat16)])


def filled(store: KvStore) -> tuple[KvStore, torch.Tensor, torch.Tensor]:
    store = store.fresh()
    store.allocate(SHAPE)
    key, value = torch.randn(2, 2, 1, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    for layer in range(2):
        store.write(layer, slice(0, 8), key[layer], value[layer])
    return store, key, value


@STORES
def test_what_is_read_is_what_was_written(store, type_):
    store, key, value = filled(store)
    for layer in range(2):
        read = store.read(layer, slice(2, 7))
        assert [tensor.dtype for tensor in read] == [torch.float32] * 2
        assert torch.equal(read[0], key[layer, :, :, 2:7].to(type_).float())
        assert torch.equal(read[1], value[layer, :, :, 2:7].to(type_).float())
    assert store.nbytes == 2 * 2 * 3 * 8 * 4 * type_.itemsize


@STORES
def test_each_head_keeps_its_own_and_what_is_behind_moves_up(store, type_):
    store, key, _ = filled(store)
    indices = torch.tensor([[[0, 3], [1, 2], [4, 0]]])
    store.keep(1, indices, length=5, held=8)
    read = store.read(1, slice(0, 5))[0]
    for head, chosen in enumerate(indices[0].tolist()):
        expected = key[1, 0, head, [*chosen, 5, 6, 7]].to(type_).float()
        assert torch.equal(read[0, head], expected)
    assert torch.equal(store.read(0, slice(0, 8))[0], key[0].to(type_).float())  # the other layer stays


@STORES
def test_entries_are_taken_over_from_another_branch(store, type_):
    ours, _, value = filled(store)
    theirs = store.fresh()
    theirs.allocate(SHAPE)
    theirs.copy(slice(1, 3), ours, slice(4, 6))
    for layer in range(2):
        assert torch.equal(theirs.read(layer, slice(1, 3))[1], value[layer, :, :, 4:6].to(type_).float())
        assert not theirs.read(layer, slice(0, 1))[0].any()


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_half_the_memory_for_a_video_that_is_nearly_the_same(goldens):
    full, half = (goldens.small_generation(Method(kv=KvPolicy(store=store))) for store in (FullPrecision(), Bfloat16()))
    ours, theirs = (torch.cat([latent for _, latent in sample(each)], dim=1) for each in (full, half))
    assert 2 * half.kv_bytes_allocated == full.kv_bytes_allocated
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).norm() < 0.02 * ours.norm()
