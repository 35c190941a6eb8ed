"""TriAttention: the published sum over pairs of channels, from statistics of the queries before their rotation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from baselines.tri_attention import TriAttention
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.select.base import Entries
from flowcache.kv.store.base import StoreShape
from flowcache.models.wan.rotary import rotary_pairs

FRAME, CHUNK, CHANNELS = 4, 8, 12
ROTARY = rotary_pairs(CHANNELS, 2, 2, "cpu")


def turned(x: torch.Tensor, position: torch.Tensor, rotary: RotaryPairs = ROTARY) -> torch.Tensor:
    """Queries or keys [..., N, E] as a model rotates them."""
    still = torch.zeros(1, len(rotary.time))
    back = RotaryPairs(rotary.first, rotary.second, -rotary.time, torch.cat([-rotary.space, still]))
    pairs, out = back.turned_back(x, position // FRAME, position % FRAME), torch.empty_like(x)
    out[..., rotary.first], out[..., rotary.second] = pairs.real, pairs.imag
    return out


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ready(select: TriAttention, groups: int = 1) -> TriAttention:
    select.allocate(StoreShape(1, 1, groups, 16, CHANNELS, torch.float32, "cpu"))
    return select


def seen(query: torch.Tensor, key: torch.Tensor, position: torch.Tensor, query_position: torch.Tensor) -> Entries:
    where = position.expand(key.shape[:-1])
    return Entries(query, key, key, where, None, 0, FRAME, CHUNK, None, query_position, ROTARY)


def test_scores_are_the_published_sum():
    select = ready(TriAttention(window=None, horizon_frames=8))
    plain, position = drawn(1, 1, 3, CHANNELS, seed=1), torch.tensor([1, 6, 11])
    queries, tokens = drawn(1, 2, CHUNK, CHANNELS) + 0.5, torch.arange(16, 24)
    entries = seen(turned(queries, tokens), turned(plain, position), position, tokens)
    select.observe(entries)
    flat = queries[0].flatten(0, 1)  # both query heads are one population
    newest = 11 // FRAME
    for n, at in enumerate(position.tolist()):
        score = 0.0
        for pair in range(CHANNELS // 2):
            q = torch.complex(flat[:, 2 * pair], flat[:, 2 * pair + 1])
            k = torch.complex(*plain[0, 0, n, 2 * pair : 2 * pair + 2])
            mean, size = q.mean(), q.abs().mean()
            phase = (mean * k.conj()).angle().item()
            for ahead in (1, 2, 4, 8):
                between = ROTARY.time[pair].item() * (newest + ahead - at // FRAME)
                score += (mean.abs() * k.abs()).item() * math.cos(between + phase) / 4
            score += ((size - mean.abs()) * k.abs()).item()
        assert select.scores(entries)[0, 0, n].item() == pytest.approx(score, abs=2e-5)


def test_it_scores_without_queries_and_adds_up_what_rows_showed():
    one, both = ready(TriAttention(window=None), 2), ready(TriAttention(window=None), 2)
    position, tokens = torch.arange(16), torch.arange(16, 24)
    key = turned(drawn(1, 2, 16, CHANNELS, seed=1), position)
    halves = drawn(1, 4, 2 * CHUNK, CHANNELS).split(CHUNK, dim=2)
    for half in halves:
        both.observe(seen(turned(half, tokens), key, position, tokens))
    together = torch.cat(halves, dim=2)
    stands = torch.cat([tokens, tokens + 8])
    one.observe(seen(turned(together, stands), key, position, stands))
    nobody = seen(key[:, :, :0], key, position, tokens[:0])
    torch.testing.assert_close(both.scores(nobody), one.scores(nobody), atol=1e-5, rtol=0)


def test_a_kept_key_keeps_its_own_time():
    """The published code takes what is left of the past for neighbours."""
    select = ready(TriAttention(window=None))
    tokens, position = torch.arange(16, 24), torch.tensor([0, 1, 9, 14])
    plain = drawn(1, 1, 1, CHANNELS, seed=1).expand(-1, -1, 4, -1)
    entries = seen(turned(drawn(1, 1, CHUNK, CHANNELS) + 1.0, tokens), turned(plain, position), position, tokens)
    select.observe(entries)
    score = select.scores(entries)[0, 0]
    torch.testing.assert_close(score[0], score[1], atol=1e-5, rtol=0)  # the same frame, at whatever place
    assert (score[0] - score[2]).abs() > 1e-2
    moved = replace(entries, position=torch.tensor([0, 1, 2, 3]).expand(1, 1, -1))
    assert (select.scores(moved)[0, 0, 2:] - score[2:]).abs().min() > 1e-2


def test_a_cache_hands_it_what_it_needs_and_counts_what_it_remembers():
    budget = Budget(8, 24, FRAME)
    policy = KvPolicy(select=TriAttention(window=None, recent_share=0.0), budget="8 tokens")
    cache = KvCache(2, 1, CHANNELS, CHUNK, 4, policy=policy, budget=budget, rotary=ROTARY)
    other = KvPolicy(select=replace(policy.select, window=1), budget="8 tokens")
    without = 2 * 24 * (2 * CHANNELS) * 4 + 2 * 8 * 4  # keys and values, positions
    statistics = 2 * CHANNELS // 2 * 12
    assert cache.bytes_allocated == KvCache(2, 1, CHANNELS, CHUNK, 4, policy=other, budget=budget).bytes_allocated
    assert cache.bytes_allocated == without + statistics
    plain, tokens = drawn(1, 1, 16, CHANNELS, seed=1), torch.arange(16, 24)
    key, query = turned(plain, torch.arange(16)), turned(drawn(1, 1, CHUNK, CHANNELS), tokens)
    for layer in range(2):
        for chunk in range(2):
            cache.write(layer, chunk, *2 * [key[:, :, chunk * CHUNK : (chunk + 1) * CHUNK]])
    cache.begin_compression(2, scorer=2)
    for layer in range(2):
        cache.score(layer, query)
    select = ready(policy.select.fresh())
    entries = seen(query, key, torch.arange(16), tokens)
    select.observe(entries)
    assert torch.equal(cache.positions(1).long(), select.select(entries, 8).indices)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="horizon_frames=0 must be a whole number of frames of at least 1"):
        TriAttention(horizon_frames=0)
