"""The meter against the chunk before: what it compares, by hand, with what, and that its places are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.evidence import EvidenceReader
from flowcache.reuse.fingerprint import FingerprintMeter, spread
from flowcache.schedule import Schedule, diffusion_forcing_schedule, rolling_schedule, sequential_schedule

ONES, TWOS = torch.ones(3, 2), torch.full((3, 2), 2.0)


class Script:
    """Features [3, 2] of every chunk and step, all ones by default."""

    def __init__(self, features: Mapping[tuple[int, int], Tensor], follows: Mapping[int, bool] | None = None) -> None:
        self.given, self._follows = features, follows or {}

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        return torch.stack([self.given.get((step.chunk, step.step), ONES) for step in self.row.steps])

    def follows(self, chunk: int) -> bool:
        return self._follows.get(chunk, True)


def measured(script: Script, schedule: Schedule, skipped: set[tuple[int, int]] = frozenset()) -> dict:
    """(chunk, step) -> what a policy is told, as the sampler brings it to the host."""
    evidence, found = EvidenceReader(FingerprintMeter(script, "clean", 32)), {}
    for row in schedule.rows:
        script.row = row
        distances, _ = evidence.read(row)
        found |= {(chunk, row.step_of(chunk).step): distance for chunk, distance in distances.items()}
        evidence.decided(row, [s.chunk for s in row.steps if (s.chunk, s.step) not in skipped])
    return found


def test_cosine_and_deviation_by_hand():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]])
    now = torch.tensor([[4.0, 3.0], [1.0, 0.0], [2.0, 2.0]])  # 24/25 is its cosine, and of the mean it is larger
    found = measured(Script({(0, 0): before, (1, 0): now}), sequential_schedule(2, (1000.0,)))
    (distance,) = found.values()
    mean = before.mean(0)
    indices = spread((3,), 32)
    assert set(indices.tolist()) == {0, 1, 2}
    assert distance.cosine == pytest.approx(0.96)
    assert distance.change == 1.0
    assert distance.magnitude == pytest.approx(float(torch.cat([before[indices], mean[None]]).mean()))
    assert distance.relative == pytest.approx(distance.change / distance.magnitude)


def test_a_chunk_is_compared_with_the_last_that_computed_the_same_step():
    schedule = sequential_schedule(4, (1000.0, 500.0))
    script = Script({(1, 1): TWOS, (2, 1): 4 * ONES, (3, 1): 4 * ONES})
    found = measured(script, schedule)
    assert set(found) == {(chunk, step) for chunk in (1, 2, 3) for step in (0, 1)}
    assert [found[chunk, 1].relative for chunk in (1, 2, 3)] == pytest.approx([1.0, 1.0, 0.0])
    assert all(found[chunk, 0].relative == 0 for chunk in (1, 2, 3))
    # Chunk 1 skips the step: what chunk 2 would take of it is still chunk 0's.
    found = measured(script, schedule, skipped={(1, 1)})
    assert [found[chunk, 1].relative for chunk in (1, 2, 3)] == pytest.approx([1.0, 3.0, 0.0])


def test_chunks_that_run_together_are_compared_at_equal_own_steps():
    found = measured(Script({(1, 2): TWOS}), rolling_schedule(3, (1000.0, 750.0, 500.0)))
    assert set(found) == {(chunk, step) for chunk in (1, 2) for step in range(3)}
    assert {key for key, distance in found.items() if distance.relative > 0} == {(1, 2), (2, 2)}


def test_what_there_is_nothing_to_compare_with_is_not_measured():
    times = (1000.0, 500.0)
    # A given chunk took no step.
    assert {chunk for chunk, _ in measured(Script({}), sequential_schedule(3, times, prefix_chunks=1))} == {2}
    # A chunk of another prompt or size; the next one follows it.
    assert {chunk for chunk, _ in measured(Script({}, {2: False}), sequential_schedule(4, times))} == {1, 3}
    # A first chunk of steps of its own has at its second step another time.
    own = sequential_schedule(2, times, first_times=(1000.0, 750.0, 500.0))
    assert set(measured(Script({}), own)) == {(1, 0)}
    # A new window, whose chunks know nothing of those before; chunks that go in step have none ahead.
    windows = diffusion_forcing_schedule(5, times, 1, window_chunks=3, overlap_chunks=1)
    assert {chunk for chunk, _ in measured(Script({}), windows)} == {1, 2, 4}
    assert measured(Script({}), diffusion_forcing_schedule(3, times, 0, window_chunks=3)) == {}


def test_before_there_is_anything_to_compare_it_is_no_number():
    unknown = torch.full((3, 2), torch.nan)
    found = measured(Script({(0, 0): unknown, (1, 0): unknown}), sequential_schedule(2, (1000.0, 500.0)))
    assert math.isnan(found[1, 0].cosine)
    assert math.isnan(found[1, 0].relative)
    assert found[1, 1].cosine == pytest.approx(1.0)


def test_distances_against_the_row_before_have_no_cosine():
    assert ChunkDistance(1.0, 2.0).cosine is None


@pytest.mark.parametrize("shape", [(3, 60, 104), (2, 16, 16), (12, 8, 8), (3, 1560), (4680,)])
def test_places_are_spread_over_every_axis(shape):
    places = spread(shape, 32)
    assert (places.shape, places.dtype) == ((32,), torch.int64)
    assert len(set(places.tolist())) == 32
    for size, along in zip(shape, torch.unravel_index(places, shape), strict=True):
        assert float(((along + 0.5) / size).mean()) == pytest.approx(0.5, abs=0.04)
        assert len(set(along.tolist())) >= min(size, 16)


def test_a_dry_run_has_none():
    script = Script({(0, 0): ONES.to("meta")})
    script.row = sequential_schedule(1, (1000.0,)).rows[0]
    with pytest.raises(ValueError, match="a dry run on device meta has no 'clean' distances to decide by"):
        FingerprintMeter(script, "clean", 32).measure(script.row)
