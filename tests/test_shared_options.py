"""Vanilla computes everything; its options are those of every method."""

from __future__ import annotations

import torch

from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.reuse.base import Decision
from flowcache.schedule import staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import vanilla
from tests.models.magi_goldens import latents_of, small_generation


def run(method: Method, **settings) -> tuple[torch.Tensor, Trace]:
    trace = Trace()
    return latents_of(small_generation(method, **settings), trace), trace


def test_computes_every_active_chunk_of_every_row_without_measuring():
    schedule, policy = staged_schedule(6, timesteps(8), prefix_chunks=1), vanilla().reuse
    assert policy.distance is None
    assert [policy.decide(row, {}, schedule) for row in schedule.rows] == [
        Decision(row.chunks) for row in schedule.rows
    ]


def test_how_a_reusing_chunk_steps_does_not_matter_where_none_reuses():
    """Equal up to rounding: the displacement is rounded before it is added."""
    velocity, displacement = run(vanilla())[0], run(vanilla(forecast=Hold(quantity="displacement")))[0]
    torch.testing.assert_close(velocity, displacement, atol=1e-4, rtol=0)


def test_the_near_clean_copy_runs_only_where_the_option_and_the_threshold_say_so():
    with_copy, trace = run(vanilla(), near_clean_threshold=0.3)
    without, trace_without = run(vanilla(near_clean=False), near_clean_threshold=0.3)
    beyond, trace_beyond = run(vanilla(), near_clean_threshold=1.0)
    # The last two of a chunk's eight steps lie beyond t = 0.3, and there it is the oldest.
    near_clean = [(row, work.chunk) for row, work in trace.work if work.kind == "near_clean"]
    assert near_clean == [(6, 0), (7, 0), (8, 1), (9, 1), (10, 2), (11, 2)]
    assert not {"near_clean"} & (set(trace_without.flops_by_kind()) | set(trace_beyond.flops_by_kind()))
    assert torch.equal(without, beyond)
    assert not torch.equal(with_copy, without)


def test_the_near_clean_copy_changes_the_oldest_chunk_by_its_weight():
    """With all the weight on the pass with history the copy changes nothing."""
    kept = run(vanilla(), near_clean_history_weight=1.0)[0]
    torch.testing.assert_close(kept, run(vanilla(near_clean=False))[0], atol=1e-5, rtol=0)


def test_refreshing_clean_keys_changes_later_chunks_only():
    refreshed, stale = (
        run(vanilla(), num_chunks=2)[0],
        run(vanilla(refresh_clean_kv=False), num_chunks=2)[0],
    )
    assert torch.equal(refreshed[:, :, :6], stale[:, :, :6])
    assert not torch.allclose(refreshed[:, :, 6:], stale[:, :, 6:], atol=1e-3)
