"""H2O: attention of all rows looked at adds up, goes with kept keys, and is gone with dropped ones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from baselines.h2o import H2o
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import Entries, Selection
from flowcache.kv.select.scores import attention_received
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.methods import vanilla
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

FRAME, CHUNK = 2, 4
BUDGET = Budget(4, 16, FRAME)


def running(**options) -> tuple[KvCache, torch.Tensor]:
    """Of one layer, two key-value heads; and the keys of five chunks [1, 2, 20, 8]."""
    select = H2o(**options)
    cache = KvCache(1, 2, 8, CHUNK, 5, policy=KvPolicy(select=select, budget="4 tokens"), budget=BUDGET)
    return cache, torch.randn(1, 2, 20, 8, generator=torch.Generator().manual_seed(0))


def queries(seed: int) -> torch.Tensor:
    return 3 * torch.randn(1, 4, CHUNK, 8, generator=torch.Generator().manual_seed(seed))


def write(cache: KvCache, keys: torch.Tensor, *chunks: int) -> None:
    for chunk in chunks:
        part = keys[:, :, chunk * CHUNK : (chunk + 1) * CHUNK]
        cache.write(0, chunk, part, part)


def test_what_rows_attend_to_adds_up_and_goes_with_the_keys_that_stay():
    cache, keys = running(recent_share=0.0)
    write(cache, keys, 0, 1)
    assert cache.begin_observation(1) == CHUNK
    cache.score(0, queries(1))
    assert cache.num_compressions == 0
    first = attention_received(queries(1), keys[:, :, :CHUNK]).mean(-2)
    assert cache.begin_compression(2) == 2 * CHUNK
    cache.score(0, queries(2))
    total = attention_received(queries(2), keys[:, :, : 2 * CHUNK]).mean(-2)
    total[..., :CHUNK] += first
    kept = total.topk(CHUNK).indices.sort().values
    assert torch.equal(cache.positions(0).long(), kept)

    write(cache, keys, 2)
    cache.begin_compression(3)
    cache.score(0, queries(3))
    held = torch.cat([kept, torch.arange(2 * CHUNK, 3 * CHUNK).expand(1, 2, -1)], dim=-1)
    there = keys.gather(2, held[..., None].expand(-1, -1, -1, 8))
    later = attention_received(queries(3), there).mean(-2)
    later[..., :CHUNK] += total.gather(-1, kept)
    expected = held.gather(-1, later.topk(CHUNK).indices.sort().values)
    assert torch.equal(cache.positions(0).long(), expected)


def test_a_key_that_was_attended_to_once_outlives_one_that_never_was():
    """Which the last queries alone, the circulating copy's score, would drop."""
    cache, _ = running(recent_share=0.0)
    keys = 20 * torch.eye(8).repeat(2, 2, 1).view(1, 2, 16, 8)
    keys[:, :, 4:] *= 0.9
    write(cache, keys, 0, 1)
    for key in (0, 1, 2, 3):
        cache.begin_observation(1)
        cache.score(0, keys[:, :1, key : key + 1].expand(1, 4, CHUNK, 8))
    cache.begin_compression(2)
    cache.score(0, keys[:, :1, 4:5].expand(1, 4, CHUNK, 8))
    assert {0, 1, 2, 3} & set(cache.positions(0)[0, 0].tolist())
    assert cache.positions(0)[0, 0].tolist() != [4, 5, 6, 7]


def test_half_the_budget_is_the_newest_frames():
    cache, keys = running()
    write(cache, keys, 0, 1)
    cache.begin_compression(2)
    cache.score(0, queries(2))
    assert cache.positions(0)[0, :, FRAME:].tolist() == [[6, 7]] * 2


def test_a_new_window_begins_with_nothing_observed_and_sums_are_counted_as_memory():
    cache, keys = running()
    write(cache, keys, 0)
    cache.begin_observation(1)
    cache.score(0, queries(1))
    assert cache._observed.any()
    cache.clear()
    assert not cache._observed.any()
    plain = KvCache(1, 2, 8, CHUNK, 5, policy=KvPolicy(select=H2o(), budget=None), budget=None)
    per_token = 2 * 2 * 8 * 4
    assert plain.bytes_allocated == 20 * per_token
    assert cache.bytes_allocated == 16 * per_token + 2 * 4 * 4 + 16 * 2 * 4  # keys and values, positions, sums


@dataclass(kw_only=True)
class Recorded(H2o):
    """Writes down the first sums that it selects by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        FIRST.clear()

    def select(self, entries: Entries, budget: int) -> Selection:
        FIRST.setdefault(entries.layer, entries.observed.sum(-1))
        return super().select(entries, budget)


FIRST: dict[int, torch.Tensor] = {}


@pytest.mark.parametrize(("window", "look_every"), [(None, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens, wan_goldens], ids=["magi", "skyreels", "wan"])
def test_every_row_that_is_looked_at_counts_once_in_every_layer(goldens, window, look_every):
    """A query's attention adds up to 1, so that the sums tell how many were seen."""
    length = {} if goldens is wan_goldens else {"num_chunks": 5}
    options = {} if goldens is not skyreels_goldens else {"guidance_scale": 1.0}  # one branch, and so one cache
    method = vanilla(attention="cached", budget="1 chunk", select=Recorded(window=window, look_every=look_every))
    generation, trace = goldens.small_generation(method, **length, **options), Trace()
    compressed_in: list[int] = []

    def observe(row: Row, decision: Decision) -> None:
        if generation.kv_compressions and not compressed_in:
            compressed_in.append(row.index)

    list(sample(generation, trace, observe=observe))
    rows = [row for row, work in trace.work if work.kind == "compression" and row <= compressed_in[0]]
    assert len(set(rows)) == len(rows) > 1
    looks = rows[:-1]  # and the row that compresses
    assert {later - row for row, later in pairwise(looks)} <= {look_every}
    assert 1 <= rows[-1] - looks[-1] <= look_every
    shape = generation.caches[0].budget.tokens_per_frame, generation.caches[0].tokens_per_chunk
    expected = len(rows) * method.kv.select.num_queries(*shape)
    assert len(FIRST) > 1
    for sums in FIRST.values():
        torch.testing.assert_close(sums, torch.full_like(sums, expected), atol=1e-3, rtol=0)
