"""The first frames and the newest ones stay, in frames, for as long as the video goes on."""

from __future__ import annotations

import pytest
import torch

from baselines.sink_recent import SinkRecent
from flowcache.sampler import sample
from tests.methods import select_keys, vanilla
from tests.models import magi_goldens, skyreels_goldens


def test_keeps_the_first_and_the_newest_frames_of_every_head():
    key = torch.randn(2, 3, 24, 4)
    kept = select_keys(key[..., :1, :], key, 9, SinkRecent(sink_frames=1), 3, 6)
    assert kept.indices.tolist() == [[[0, 1, 2, *range(18, 24)]] * 3] * 2
    assert kept.unusable.tolist() == [[0] * 3] * 2
    assert kept.bias is None
    none = select_keys(key[..., :1, :], key, 9, SinkRecent(sink_frames=0), 3, 6)
    assert none.indices[0, 0].tolist() == list(range(15, 24))


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_sinks_survive_every_compression_and_the_newest_frames_follow_each_other(goldens):
    frames, sink = (4 * 6, 4) if goldens is magi_goldens else (8, 4)
    method = vanilla(attention="cached", budget="1 chunk", select=SinkRecent(sink_frames=1))
    generation = goldens.small_generation(method, num_chunks=5)
    seen = []

    def observe(row, decision) -> None:
        for cache in generation.caches:
            if cache.num_compressions:
                positions = cache.positions(0)[..., : cache.budget.kept]
                seen.append(positions[0, 0].tolist())
                assert (positions == positions[:, :1]).all()

    list(sample(generation, observe=observe))
    assert generation.kv_compressions > 1
    for kept in seen:
        assert kept[:sink] == list(range(sink))
        assert kept[sink:] == list(range(kept[sink], kept[sink] + len(kept) - sink))
    assert len({tuple(kept) for kept in seen}) > 1
    assert len(seen[0]) == frames


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_choosing_costs_no_flops_and_no_queries(goldens):
    method = vanilla(attention="cached", budget="1 chunk", select=SinkRecent())
    generation = goldens.small_generation(method, num_chunks=5)
    list(sample(generation))
    assert method.kv.select.num_queries(4, 24) == 0
    assert method.kv.select.flops(4, 2, 8, 0, 100) == 0


def test_a_budget_without_room_beside_the_sinks_and_what_is_no_count_are_refused():
    with pytest.raises(ValueError, match=r"budget='1 chunk' is 24 tokens per head, .* at least 28; .*'28 tokens'"):
        magi_goldens.small_generation(vanilla(budget="1 chunk", select=SinkRecent(sink_frames=6)), num_chunks=5)
    with pytest.raises(ValueError, match="sink_frames=-1 must be a whole number of latent frames, at least 0"):
        SinkRecent(sink_frames=-1)
