"""Reuse decisions from features: the official caches' decisions on stored random walks (goldens/flowcache).

Distances are measured here, where test_chunkwise.py and tests/baselines/test_uniform.py decide on recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.uniform import Uniform
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.schedule import Row, Schedule, staged_schedule, timesteps
from tests.golden_files import manifest, tensors
from tests.methods import distances_of

CASES = manifest("flowcache/cache_decisions")["cases"]
KIND = "embedded_latent"


def cases(kind: str, videos: int = 1) -> list[dict[str, Any]]:
    return [case for case in CASES if case["kind"] == kind and case.get("videos", 1) == videos]


def name(case: dict[str, Any]) -> str:
    return f"{case['features']}-eps{case['threshold']}-m{case['warmup']}"


class WalkedFeatures:
    """A feature source that stands in one row of a stored walk [rows, chunks, tokens, 1, channels]."""

    def __init__(self, walk: Tensor) -> None:
        self.walk, self.row = walk, 0

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        assert kind == KIND
        return self.walk[self.row, chunks[0] : chunks[-1] + 1]


def schedule_of(case: dict[str, Any]) -> Schedule:
    sizes = case["config"]
    schedule = staged_schedule(sizes["N"], timesteps(sizes["S"]), sizes["W"])
    assert [list(range(low, high)) for low, high in case["active"]] == [list(row.chunks) for row in schedule.rows]
    return schedule


def decide_all(
    case: dict[str, Any], policy: ReusePolicy
) -> Iterator[tuple[Row, dict[int, ChunkDistance], dict[int, float], Decision]]:
    """For each row the distances measured, the accumulators before, and the decision."""
    schedule, source = schedule_of(case), WalkedFeatures(tensors("flowcache/cache_decisions")[case["features"]])
    meter = DistanceMeter(source, KIND)
    for row in schedule.rows:
        source.row = row.index
        distances, before = distances_of(meter, row), dict(policy.accumulated)
        yield row, distances, before, policy.decide(row, distances, schedule)


def chunkwise(case: dict[str, Any]) -> Chunkwise:
    return Chunkwise(threshold=case["threshold"], warmup_steps=case["warmup"], last_step="global", distance=KIND)


@pytest.mark.parametrize("features", ["0", "1"])
def test_measures_the_official_distances(features):
    case = next(case for case in cases("chunkwise") if case["features"] == f"features_{features}")
    expected = tensors("flowcache/cache_decisions")[f"rel_l1_{features}"]
    measured = torch.full_like(expected, torch.nan)
    for row, distances, _, _ in decide_all(case, chunkwise(case)):
        for chunk, distance in distances.items():
            measured[row.index, chunk] = distance.relative
    torch.testing.assert_close(measured, expected, atol=1e-7, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases("chunkwise"), ids=name)
def test_chunkwise_reuse_decides_as_the_official_code(case):
    policy = chunkwise(case)
    last = len(case["rows"]) - 1
    for (row, distances, before, decision), expected in zip(decide_all(case, policy), case["rows"], strict=True):
        assert [chunk not in decision.compute for chunk in row.chunks] == expected["reuse"]
        assert [s.step for s in row.steps] == expected["denoise_count"]
        if row.index < last:  # there the official code leaves its accumulators as they were; nothing reads them again
            assert [policy.accumulated[c] for c in row.chunks] == pytest.approx(expected["acc"], abs=1e-7)
        for chunk, tested in zip(row.chunks, expected["tested"], strict=True):
            if tested is not None:
                assert before[chunk] + distances[chunk].relative == pytest.approx(tested, abs=1e-7)


@pytest.mark.parametrize("case", cases("chunkwise", videos=2), ids=name)
def test_a_second_video_is_decided_as_the_first_where_the_official_state_leaks(case):
    """The official cache carries its accumulators over; with warm-up 0 or 1 that changes the second video (row 16)."""
    first, second = ([row["reuse"] for row in case["rows"] if row["video"] == video] for video in (0, 1))
    assert (first == second) == (case["warmup"] >= 3)
    for _ in range(2):
        rows = decide_all(case, chunkwise(case))
        assert [[chunk not in decision.compute for chunk in row.chunks] for row, _, _, decision in rows] == first


@pytest.mark.parametrize("case", cases("teacache"), ids=name)
def test_published_teacache_decides_as_the_official_code(case):
    policy = Uniform(threshold=case["threshold"], warmup_steps=case["warmup"], distance=KIND, published=True)
    for (row, _, _, decision), expected in zip(decide_all(case, policy), case["rows"], strict=True):
        old, new = row.chunks[:-1], row.chunks[-1:]
        if expected["only_new_chunk"]:
            assert decision == Decision(compute=new, held=old, isolated=new)
        else:
            assert decision == Decision(compute=row.chunks if expected["should_calc"] else ())
        assert bool(decision.compute) != expected["reuse"]
        assert policy.total == pytest.approx(expected["acc"], abs=1e-7)
