"""TempCache: equal keys merge into one that weighs as much, across frames alone, by threshold and by budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines import temp_cache
from baselines.temp_cache import TempCache
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.select.base import Entries, Selection
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.full_precision import FullPrecision
from flowcache.kv.store.integer import Integer
from flowcache.models.wan.rotary import rotary_pairs
from flowcache.sampler import sample
from tests.methods import vanilla
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

CHANNELS = 8


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def standing(frame: int) -> RotaryPairs:
    """A model whose keys do not turn with time."""
    rotary = rotary_pairs(CHANNELS, 1, frame, "cpu")
    return replace(rotary, time=torch.zeros_like(rotary.time))


def entries(key: Tensor, value: Tensor, frame: int, rotary: RotaryPairs | None = None) -> Entries:
    """Of frames of ``frame`` tokens from the video's beginning."""
    position = torch.arange(key.shape[-2], dtype=torch.int32).expand(key.shape[:-1])
    rotary = standing(frame) if rotary is None else rotary
    return Entries(key[..., :0, :], key, value, position, None, 0, frame, 2 * frame, rotary=rotary)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    logits = query @ key.mT / math.sqrt(query.shape[-1]) + bias[..., None, :]
    return logits.softmax(-1) @ value


def attended(query: Tensor, given_: Entries, chosen: Selection) -> Tensor:
    kept = given_.key.gather(-2, chosen.indices[..., None].expand(*chosen.indices.shape, CHANNELS))
    return attention(query, kept, chosen.value, chosen.bias)


@settings(deadline=None, max_examples=30)
@given(
    groups=st.integers(1, 3),
    distinct=st.integers(1, 5),
    times=st.integers(2, 6),
    threshold=st.sampled_from([-1.0, 0.5, 0.99]),
    rows=st.sampled_from([1, 3, 256]),
    seed=st.integers(0, 99),
)
def test_merging_equal_keys_equals_keeping_them(groups, distinct, times, threshold, rows, seed):
    """Every frame shows the same keys with other values."""
    key = drawn(1, groups, distinct, CHANNELS, seed=seed).repeat(1, 1, times, 1)
    given_ = entries(key, drawn(*key.shape, seed=seed + 1), distinct)
    query = drawn(1, groups, 7, CHANNELS, seed=seed + 2)
    full = attention(query, key, given_.value, torch.zeros(key.shape[:-1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temp_cache, "ROWS_A_BLOCK", rows)
        for budget in range(distinct, distinct * times):
            chosen = TempCache(threshold=threshold).select(given_, budget)
            torch.testing.assert_close(chosen.bias.exp().sum(-1), torch.full((1, groups), float(distinct * times)))
            torch.testing.assert_close(attended(query, given_, chosen), full, atol=1e-5, rtol=1e-5)


def test_merging_again_counts_what_was_merged_before():
    """Three frames to one, and that with two more to one."""
    key, value = drawn(1, 2, 4, CHANNELS).repeat(1, 1, 5, 1), drawn(1, 2, 20, CHANNELS, seed=1)
    select, whole = TempCache(), entries(key, value, 4)
    first = entries(key[:, :, :12], value[:, :, :12], 4)
    early = select.select(first, 4)
    assert early.indices.tolist() == [[[8, 9, 10, 11]] * 2]
    later = replace(
        whole,
        key=torch.cat([key[:, :, 8:12], key[:, :, 12:]], dim=2),
        value=torch.cat([early.value, value[:, :, 12:]], dim=2),
        position=torch.arange(8, 20, dtype=torch.int32).expand(1, 2, -1),
        bias=torch.cat([early.bias, torch.zeros(1, 2, 8)], dim=-1),
    )
    twice, once = select.select(later, 4), select.select(whole, 4)
    torch.testing.assert_close(twice.bias, torch.full((1, 2, 4), math.log(5)))
    torch.testing.assert_close(twice.value, once.value)


def test_the_most_alike_are_merged_first_and_no_more_than_the_budget_asks_for():
    key = torch.eye(CHANNELS)[None, None, [0, 1, 0, 1]].clone()
    key[..., 2, 3] = 0.1  # nearly as key 0
    key[..., 3, 3] = 0.4  # less like key 1
    given_ = entries(key, drawn(1, 1, 4, CHANNELS), 2)
    one, two = (TempCache(threshold=0.5).select(given_, budget) for budget in (3, 2))
    assert one.indices.tolist() == [[[1, 2, 3]]]
    torch.testing.assert_close(one.bias, torch.tensor([[[0.0, math.log(2), 0.0]]]))
    assert torch.equal(one.value[..., [0, 2], :], given_.value[..., [1, 3], :])  # to the bit
    torch.testing.assert_close(one.value[..., 1, :], given_.value[..., [0, 2], :].mean(-2))
    assert two.indices.tolist() == [[[2, 3]]]
    likeness = 2 / (1 + 1 + 0.4**2)
    above = TempCache(threshold=likeness + 0.01).select(given_, 2)
    assert above.indices.tolist() == [[[2, 3]]]
    torch.testing.assert_close(above.bias, torch.tensor([[[math.log(2), 0.0]]]))  # key 1 is dropped, not merged


def test_chains_end_at_the_latest_key():
    key = torch.ones(1, 1, 6, CHANNELS) + torch.arange(6)[:, None] * 0.01
    chosen = TempCache().select(entries(key, drawn(1, 1, 6, CHANNELS), 1), 1)
    assert chosen.indices.tolist() == [[[5]]]
    torch.testing.assert_close(chosen.bias, torch.tensor([[[math.log(6)]]]))


def test_keys_of_one_frame_are_never_merged():
    key = torch.ones(1, 1, 8, CHANNELS)
    chosen = TempCache(threshold=-1).select(entries(key, key, 4), 4)
    assert chosen.indices.tolist() == [[[4, 5, 6, 7]]]
    fewer = TempCache(threshold=-1).select(entries(key, key, 8), 3)  # all of one frame: the oldest are dropped
    assert fewer.indices.tolist() == [[[5, 6, 7]]]
    assert not fewer.bias.any()


def test_parallel_keys_of_other_lengths_are_not_alike():
    key = torch.ones(1, 1, 2, CHANNELS) * torch.tensor([1.0, 3.0])[:, None]
    likeness, later = TempCache().correspondence(entries(key, key, 1))
    assert later[0, 0, 0] == 1
    assert likeness[0, 0].tolist() == [pytest.approx(0.6), -math.inf]


def test_keys_are_compared_as_if_of_one_time_but_of_their_own_places():
    frame, frames = 3, 4
    rotary = rotary_pairs(CHANNELS, 1, frame, "cpu")
    back = replace(rotary, time=-rotary.time, space=-rotary.space)
    position = torch.arange(frame * frames)
    turned = back.turned_back(
        drawn(1, 1, 1, CHANNELS).expand(-1, -1, len(position), -1), position // frame, position % 3
    )
    key = torch.empty(1, 1, len(position), CHANNELS)
    key[..., rotary.first], key[..., rotary.second] = turned.real, turned.imag
    likeness, later = TempCache().correspondence(entries(key, key, frame, rotary))
    assert (later[0, 0, :-frame] % frame == position[:-frame] % frame).all()  # the same place
    torch.testing.assert_close(likeness[0, 0, :-frame], torch.ones(frame * (frames - 1)))
    as_they_stand, _ = TempCache().correspondence(entries(key, key, frame, standing(frame)))
    assert (as_they_stand[0, 0, :-frame] < 0.999).all()


def test_sinks_stay_as_they_are():
    key, value = drawn(1, 1, 3, CHANNELS).repeat(1, 1, 4, 1), drawn(1, 1, 12, CHANNELS, seed=1)
    chosen = TempCache(sink_frames=1).select(entries(key, value, 3), 6)
    assert chosen.indices.tolist() == [[[0, 1, 2, 9, 10, 11]]]
    assert torch.equal(chosen.value[..., :3, :], value[..., :3, :])
    torch.testing.assert_close(chosen.bias[0, 0].exp(), torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0, 3.0]))
    least = TempCache(sink_frames=1).select(entries(key, value, 3), TempCache(sink_frames=1).least_tokens(3, 6))
    assert least.indices.tolist() == [[[0, 1, 2, 11]]]


def test_permuting_heads_permutes_values_and_weights():
    key, value, order = drawn(1, 3, 12, CHANNELS), drawn(1, 3, 12, CHANNELS, seed=1), [2, 0, 1]
    one = TempCache(threshold=-1).select(entries(key, value, 4), 5)
    other = TempCache(threshold=-1).select(entries(key[:, order], value[:, order], 4), 5)
    assert all(torch.equal(each[:, order], moved) for each, moved in zip(one, other, strict=True))


@pytest.mark.parametrize("store", [FullPrecision(), Bfloat16(), Integer(bits=8, sink_chunks=0)])
def test_a_cache_holds_the_merged_values_and_weighs_them(store):
    frame, chunk = 2, 4
    policy = KvPolicy(select=TempCache(), store=store, budget="4 tokens")
    cache = KvCache(1, 1, CHANNELS, chunk, 4, policy=policy, budget=Budget(chunk, 12, frame), rotary=standing(frame))
    key, value = drawn(1, 1, chunk, CHANNELS), drawn(1, 1, 3 * chunk, CHANNELS, seed=1)
    key[:, :, frame:] = key[:, :, :frame]  # both frames of all chunks show the same
    for i in range(3):
        cache.write(0, i, key, value[:, :, i * chunk : (i + 1) * chunk])
    cache.begin_compression(2)
    cache.score(0, key)
    read_key, read_value = cache.read(0, 0, 2)
    bias = cache.mask(0, 0, 2, torch.zeros(1, 1, 1, CHANNELS)).float()[:, :, 0]
    assert bias[..., :chunk].exp().sum() == pytest.approx(8, rel=1e-2)
    query = drawn(1, 1, 5, CHANNELS, seed=2)
    full = attention(query, key.repeat(1, 1, 3, 1), value, torch.zeros(1, 1, 12))
    got = attention(query, read_key, read_value, bias)
    torch.testing.assert_close(got, full, atol=1e-5 if store.lossless else 3e-2, rtol=0)
    torch.testing.assert_close(read_value[:, :, chunk:], value[:, :, 2 * chunk :], atol=3e-2, rtol=0)


@pytest.mark.parametrize(
    "generation",
    [
        lambda method: magi_goldens.small_generation(method, num_chunks=5),
        lambda method: skyreels_goldens.small_generation(method, num_chunks=6, base_num_frames=45),
        lambda method: wan_goldens.small_generation(method, num_frames=15),
    ],
    ids=["magi", "skyreels", "wan"],
)
def test_merging_changes_what_dropping_would(generation):
    latents = []
    for threshold in (-1, 0.999):
        made = generation(vanilla(attention="cached", budget="1 chunk", select=TempCache(threshold=threshold)))
        list(sample(made))
        assert made.kv_compressions > 1
        latents.append(made.latents)
    assert latents[0].isfinite().all()
    assert not torch.allclose(*latents, atol=1e-5)


def test_bad_options_are_refused():
    for threshold in (1, 1.5, -1.1, math.nan, "0.9", True):
        with pytest.raises(ValueError, match=r"threshold=.* must be a number from -1 .* to below 1"):
            TempCache(threshold=threshold)
    with pytest.raises(ValueError, match="sink_frames=-1 must be a whole number of latent frames, at least 0"):
        TempCache(sink_frames=-1)
