"""TeaCache: the official adaptation's decisions (goldens/magi: g_teacache_*), and one sound decision for all chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.uniform import Uniform
from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.reuse.base import Decision
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule, diffusion_forcing_schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import uniform
from tests.models.magi_goldens import decisions, golden_generation, latents_of, manifest, tensors

RUNS = ("g_teacache_late_localkv_mlp", "g_teacache_late_mlp", "g_teacache_early_mlp", "g_teacache_late_nearclean_mlp")
# Chunks whose keys and values upstream reads before it writes them: with them attended, latents cannot agree.
SOUND_RUN = "g_teacache_late_localkv_mlp"


def published(run: str) -> Method:
    case = manifest(run)
    return uniform(
        threshold=case["rel_l1_thresh"],
        warmup_steps=case["warmup_steps"],
        published=True,
        refresh_clean_kv=False,
        forecast=Hold(quantity="displacement"),
    )


@pytest.fixture(scope="module", params=RUNS)
def finished(request):
    """A run's name, trace and latents."""
    run, trace = request.param, Trace()
    method = published(run)
    return run, trace, latents_of(golden_generation(run, method), trace)


def test_decides_as_the_official_code(finished):
    run, trace, _ = finished
    for row, step in zip(trace.computed_rows(), decisions(run), strict=True):
        assert bool(row) == step["calc"]
        assert not (step["reuse"] and row)
        if step["partial_new_chunk_only"]:
            assert len(row) == 1
        elif row:
            assert len(row) == step["chunks_now"]


def test_old_chunks_are_held_where_the_official_code_computes_the_new_one_only(finished):
    run, trace, _ = finished
    held = {entry.row for entry in trace.entries if entry.action == "held"}
    grown = {s["step"] for s in decisions(run) if s["partial_new_chunk_only"] and s["chunks_now"] > 1}
    assert held == grown
    assert len(grown) == 3


def test_latents_match_the_official_code_where_it_attends_written_keys_only():
    method = published(SOUND_RUN)
    latents = latents_of(golden_generation(SOUND_RUN, method))
    torch.testing.assert_close(latents, tensors(SOUND_RUN)["out.final_latents"], atol=2e-4, rtol=0)


def test_first_chunks_match_the_official_code_in_every_run(finished):
    """The first chunk attends to itself alone, so unwritten keys do not reach it."""
    run, _, latents = finished
    expected = tensors(run)["out.final_latents"]
    atol = 1e-3 if manifest(run)["engine"]["distill"] else 2e-4
    torch.testing.assert_close(latents[:, :, :6], expected[:, :, :6], atol=atol, rtol=0)


def test_accumulates_as_the_official_code(finished):
    run, trace, _ = finished
    recorded = [step["accumulated_after"] for step in decisions(run)]
    last = {entry.row: entry.accumulated for entry in trace.entries}
    tolerance = 1e-4 if run == SOUND_RUN else None
    for row, expected in enumerate(recorded):
        if tolerance:
            assert last[row] == pytest.approx(expected, rel=tolerance)
        else:  # later chunks have drifted, but zero means "just computed"
            assert (last[row] == 0.0) == (expected == 0.0)


def one_distance(row: Row, before: Row | None, relative: float) -> dict[int, ChunkDistance]:
    common = [chunk for chunk in row.chunks if before is not None and chunk in before.chunks]
    return {chunk: ChunkDistance(relative, 1.0) for chunk in common}


def decide_all(policy: Uniform, schedule: Schedule, relative: Sequence[float]) -> list[Decision]:
    before, result = None, []
    for row, distance in zip(schedule.rows, relative, strict=True):
        result.append(policy.decide(row, one_distance(row, before, distance), schedule))
        before = row
    return result


@pytest.mark.parametrize("run", RUNS)
def test_decides_as_the_official_code_on_its_recorded_distances(run):
    schedule = staged_schedule(5, timesteps(16))
    policy = published(run).reuse
    relative = [step.get("rel_l1", 0.0) for step in decisions(run)]
    for row, step, decision in zip(schedule.rows, decisions(run), decide_all(policy, schedule, relative), strict=True):
        assert bool(decision.compute) == step["calc"]
        new_only = step["partial_new_chunk_only"] and row.index > 0
        assert decision.compute in ((row.chunks[-1:],) if new_only else (row.chunks, ()))
        assert decision.held == (row.chunks[:-1] if new_only else ())
        assert decision.isolated == (row.chunks[-1:] if new_only else ())


def sound(threshold: float, warmup_steps: int) -> Uniform:
    return Uniform(threshold=threshold, warmup_steps=warmup_steps)


def test_weighs_chunks_by_their_magnitude():
    """One relative change of all chunks together, not a mean of relative changes."""
    schedule = staged_schedule(2, timesteps(8))
    row = schedule.rows[3]
    policy = sound(10.0, 0)
    policy.decide(schedule.rows[2], {}, schedule)
    policy.decide(row, {0: ChunkDistance(1.0, 9.0), 1: ChunkDistance(1.0, 1.0)}, schedule)
    assert policy.accumulated == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}


def test_reuses_strictly_below_the_threshold_and_starts_over_when_it_computes():
    schedule = staged_schedule(1, timesteps(8), window_size=1)
    policy = sound(0.5, 1)
    decided = decide_all(policy, schedule, [9.0, 0.25, 0.125, 0.125, 0.25, 0.125, 0.0, 0.0])
    assert [row for row, decision in enumerate(decided) if decision.compute] == [0, 3, 7]


def test_a_nan_distance_computes_and_is_forgotten():
    schedule = staged_schedule(1, timesteps(4), window_size=1)
    policy = sound(1e9, 0)
    decided = decide_all(policy, schedule, [0.0, math.nan, 0.25, 0.0])
    assert [row for row, decision in enumerate(decided) if decision.compute] == [0, 1, 3]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schedule, list[float]]:
    window = draw(st.integers(1, 4))
    num_chunks = draw(st.integers(1, 6))
    prefix = draw(st.integers(0, num_chunks - 1))
    schedule = staged_schedule(num_chunks, timesteps(window * draw(st.integers(1, 4))), window, prefix)
    sixteenths = st.integers(0, 32).map(lambda n: n / 16)
    return schedule, draw(st.lists(sixteenths, min_size=len(schedule.rows), max_size=len(schedule.rows)))


@given(cases(), st.integers(0, 8), st.floats(0.0, 4.0))
def test_decides_for_all_old_chunks_alike_and_always_computes_new_ones(case, warmup_steps, threshold):
    schedule, relative = case
    before: tuple[int, ...] = ()
    for row, decision in zip(
        schedule.rows, decide_all(sound(threshold, warmup_steps), schedule, relative), strict=True
    ):
        new = {chunk for chunk in row.chunks if chunk not in before}
        assert set(decision.compute) in (new, set(row.chunks))
        assert (decision.held, decision.isolated) == ((), ())
        if row.index in (0, len(schedule.rows) - 1) or row.index < warmup_steps:
            assert decision.compute == row.chunks
        before = row.chunks


@given(cases(), st.integers(0, 8))
def test_threshold_zero_computes_everything(case, warmup_steps):
    schedule, relative = case
    decided = decide_all(sound(0.0, warmup_steps), schedule, relative)
    assert [decision.compute for decision in decided] == [row.chunks for row in schedule.rows]


def test_nothing_to_measure_is_no_division_by_zero():
    schedule = staged_schedule(1, timesteps(4), window_size=1)
    still: Mapping[int, ChunkDistance] = {0: ChunkDistance(0.0, 0.0)}
    policy = sound(0.1, 0)
    policy.decide(schedule.rows[0], {}, schedule)
    assert policy.decide(schedule.rows[1], still, schedule).compute == ()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="threshold=-1 must be a finite number of at least 0"):
        uniform(threshold=-1, warmup_steps=0)
    with pytest.raises(ValueError, match=r"warmup_steps=0.5 must be a whole number"):
        uniform(threshold=0.1, warmup_steps=0.5)


def test_every_window_computes_its_first_rows_and_its_last():
    schedule = diffusion_forcing_schedule(5, list(range(900, 0, -100)), 2, window_chunks=3, overlap_chunks=1)
    policy, computed = Uniform(threshold=1.0, warmup_steps=3, distance="latent"), []
    for row in schedule.rows:
        opens = row.index == schedule.windows[row.window].rows[0]
        measured = {} if opens else {chunk: ChunkDistance(0.0, 1.0) for chunk in row.visible}
        decision = policy.decide(row, measured, schedule)
        assert decision.compute in (row.chunks, ())
        computed += [row.index] * bool(decision.compute)
    first, second = (window.rows for window in schedule.windows)
    assert computed == [*first[:3], first[-1], *second[:3], second[-1]]


def test_rescaled_distances_accumulate_and_threshold_zero_never_reuses():
    schedule = staged_schedule(1, timesteps(6), window_size=1)
    falling = (10.0, -1.0)
    seen = []
    policy = Uniform(threshold=0.75, warmup_steps=1, distance="rescaled_modulation", polynomial=falling)
    for row, distance in zip(schedule.rows, [0.0, 0.15, 0.05, 0.15, 0.15, 0.0], strict=True):
        policy.decide(row, {0: ChunkDistance(distance, 1.0)} if row.index else {}, schedule)
        seen.append(policy.accumulated[0])
    assert seen == pytest.approx([0.0, 0.5, 0.0, 0.5, 0.0, 0.0], abs=1e-12)
    never = Uniform(threshold=0.0, warmup_steps=0, distance="rescaled_modulation", polynomial=falling)
    for row in schedule.rows:
        assert never.decide(row, {0: ChunkDistance(0.0, 1.0)} if row.index else {}, schedule).compute == (0,)
