"""Reuse policies: the recorded decisions of the official code, and what must hold for any distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcache.reuse.base import Decision
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.never import Never
from flowcache.reuse.replay import Replay
from flowcache.schedule import Schedule, staged_schedule, timesteps
from tests.methods import chunkwise
from tests.models.magi_goldens import decisions, golden_runtime, manifest

RUNS = (
    "g_flowcache_mlp",
    "g_flowcache_nearclean_kept_mlp",
    "g_flowcache_nearclean_dropped_mlp",
    "g_flowcache_never_reuse_mlp",
    "g_flowcache_prefix_mlp",
    "g_flowcache_compress_mlp",
    "g_flowcache_compress_chunkq_mlp",
    "g_flowcache_compress_framewise_mlp",
    "g_flowcache_compress_nearclean_asis_mlp",
    "g_flowcache_compress_nearclean_repaired_mlp",
)


FALLING = {"distance": "rescaled_modulation", "polynomial": (10.0, -1.0)}
BELOW_ZERO = {"distance": "rescaled_modulation", "polynomial": (0.0, -1.0)}
UNIT = 1.0 - 1e-8  # a magnitude at which the guard against 0/0 leaves relative distances exact


def one_chunk(num_steps: int) -> Schedule:
    return staged_schedule(1, timesteps(num_steps), window_size=1)


def decide_all(policy, schedule: Schedule, distances: Sequence[Sequence[float]]) -> list[Decision]:
    """Decide every row; distances[chunk][step] is given wherever the chunk was active in the row before."""
    result = []
    for row in schedule.rows:
        given = {s.chunk: ChunkDistance(distances[s.chunk][s.step], UNIT) for s in row.steps if s.step > 0}
        result.append(policy.decide(row, given, schedule))
    return result


def computed_steps(schedule: Schedule, decided: Sequence[Decision], chunk: int) -> list[int]:
    rows = zip(schedule.rows, decided, strict=True)
    return [row.step_of(chunk).step for row, decision in rows if chunk in decision.compute]


@pytest.mark.parametrize("run", RUNS)
def test_decides_as_the_official_code_on_its_recorded_distances(run):
    case, runtime = manifest(run), golden_runtime(run)
    first = decisions(run)[0]["active"][0]
    num_chunks = 1 + max(step["active"][-1] for step in decisions(run))
    schedule = staged_schedule(num_chunks, timesteps(runtime.num_steps), runtime.window_size, first)
    policy = Chunkwise(
        threshold=case["rel_l1_thresh"],
        warmup_steps=case["warmup_steps"],
        last_step="global",
        distance="embedded_latent",
    )
    known: set[int] = set()
    for row, step in zip(schedule.rows, decisions(run), strict=True):
        assert list(row.chunks) == step["active"]
        # The last row's distances were not recorded; it computes whatever they are.
        recorded = zip(step["active"], step["rel_l1"], strict=True)
        distances = {c: ChunkDistance(d or 0.0, UNIT) for c, d in recorded if c in known}
        assert list(policy.decide(row, distances, schedule).compute) == step["computed"]
        accumulated = [policy.accumulated[chunk] for chunk in step["active"]]
        assert accumulated == pytest.approx(step["accumulated_after"], rel=1e-5)
        known = set(row.chunks)


def test_compute_all_computes_all():
    schedule = staged_schedule(3, timesteps(8))
    assert [Never().decide(row, {}, schedule) for row in schedule.rows] == [
        Decision(row.chunks) for row in schedule.rows
    ]


def test_reuses_strictly_below_the_threshold():
    schedule = one_chunk(6)
    policy = Chunkwise(threshold=0.5, warmup_steps=1)
    # Steps 1 and 2 stay below, 3 reaches the threshold exactly and computes, 4 starts from zero, 5 is the last.
    decided = decide_all(policy, schedule, [[0.0, 0.25, 0.125, 0.125, 0.25, 0.0]])
    assert computed_steps(schedule, decided, 0) == [0, 3, 5]


def test_accumulates_over_reused_steps_and_starts_over_when_it_computes():
    schedule = one_chunk(6)
    policy = Chunkwise(threshold=0.5, warmup_steps=2)
    seen = []
    for row, distance in zip(schedule.rows, [9.0, 9.0, 0.25, 0.125, 0.25, 9.0], strict=True):
        given = {0: ChunkDistance(distance, UNIT)} if row.index else {}
        policy.decide(row, given, schedule)
        seen.append(policy.accumulated[0])
    assert seen == [0.0, 0.0, 0.25, 0.375, 0.0, 0.0]


def test_a_nan_distance_computes():
    schedule = one_chunk(4)
    policy = Chunkwise(threshold=1e9, warmup_steps=0)
    decided = decide_all(policy, schedule, [[0.0, math.nan, 0.0, 0.0]])
    assert computed_steps(schedule, decided, 0) == [0, 1, 3]
    assert not math.isnan(policy.accumulated[0])


def test_rescaled_distances_accumulate_and_may_fall():
    """p(d) = 10 d - 1: up by a half, down by a half, up to the threshold."""
    schedule, policy, seen = (
        one_chunk(6),
        Chunkwise(threshold=0.75, warmup_steps=1, **FALLING),
        [],
    )
    for row, distance in zip(schedule.rows, [0.0, 0.15, 0.05, 0.15, 0.15, 0.0], strict=True):
        policy.decide(row, {0: ChunkDistance(distance, UNIT)} if row.index else {}, schedule)
        seen.append(policy.accumulated[0])
    assert seen == pytest.approx([0.0, 0.5, 0.0, 0.5, 0.0, 0.0], abs=1e-12)


def test_threshold_zero_computes_below_zero_too():
    schedule, policy = (
        one_chunk(4),
        Chunkwise(threshold=0.0, warmup_steps=0, **BELOW_ZERO),
    )
    assert computed_steps(schedule, decide_all(policy, schedule, [[0.0] * 4]), 0) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "rescaled_modulation"}, "distance='rescaled_modulation' does not go with polynomial=None"),
        ({"distance": "latent", "polynomial": [1.0, 0.0]}, "distance='latent' does not go with polynomial="),
        ({"distance": "rescaled_modulation", "polynomial": "2B"}, "polynomial='2B' is unknown"),
        ({"attention": "full"}, "attention='full' is unknown; choose 'cached', 'native' or 'causal'"),
        ({"prefix": "none"}, "prefix='none' is unknown; choose 'clean' or 'published'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chunkwise(threshold=0.1, warmup_steps=1, **options)


def test_coefficients_are_kept_as_numbers():
    method = chunkwise(threshold=0.1, warmup_steps=1, distance="rescaled_modulation", polynomial=[1, 2])
    assert method.reuse.polynomial == (1.0, 2.0)
    assert method == chunkwise(threshold=0.1, warmup_steps=1, distance="rescaled_modulation", polynomial=(1.0, 2.0))


def test_last_step_own_and_global_differ_only_in_the_last_step_of_chunks_before_the_last():
    schedule = staged_schedule(3, timesteps(8))
    still = [[0.0] * 8] * 3
    own = decide_all(Chunkwise(threshold=1.0, warmup_steps=0), schedule, still)
    published = decide_all(Chunkwise(threshold=1.0, warmup_steps=0, last_step="global"), schedule, still)
    assert [computed_steps(schedule, own, chunk) for chunk in range(3)] == [[0, 7]] * 3
    assert [computed_steps(schedule, published, chunk) for chunk in range(3)] == [[0], [0], [0, 7]]


def test_chunks_do_not_share_their_distances():
    schedule = staged_schedule(2, timesteps(8))
    moving, still = [0.3] * 8, [0.0] * 8
    decided = decide_all(Chunkwise(threshold=0.5, warmup_steps=0), schedule, [moving, still])
    assert computed_steps(schedule, decided, 0) == [0, 2, 4, 6, 7]
    assert computed_steps(schedule, decided, 1) == [0, 7]


# Sixteenths, so that sums are exact and comparisons mean what they say.
sixteenths = st.integers(0, 32).map(lambda n: n / 16)


@st.composite
def reuse_cases(draw: st.DrawFn) -> tuple[Schedule, int, list[list[float]]]:
    window = draw(st.integers(1, 4))
    num_steps = window * draw(st.integers(1, 4))
    num_chunks = draw(st.integers(1, 5))
    schedule = staged_schedule(num_chunks, timesteps(num_steps), window, draw(st.integers(0, num_chunks - 1)))
    steps = st.lists(sixteenths, min_size=num_steps, max_size=num_steps)
    distances = draw(st.lists(steps, min_size=num_chunks, max_size=num_chunks))
    return schedule, draw(st.integers(0, num_steps + 1)), distances


@given(reuse_cases(), sixteenths)
def test_never_reuses_in_warmup_first_or_last_step(case, threshold):
    schedule, warmup_steps, distances = case
    decided = decide_all(Chunkwise(threshold=threshold, warmup_steps=warmup_steps), schedule, distances)
    forced = {step for step in range(schedule.num_steps) if step < max(1, warmup_steps)} | {schedule.num_steps - 1}
    for chunk in range(schedule.prefix_chunks, schedule.num_chunks):
        assert forced <= set(computed_steps(schedule, decided, chunk))


@given(reuse_cases(), sixteenths)
def test_no_chunk_reuses_across_a_distance_of_the_threshold(case, threshold):
    """What the accumulation promises: since the last computed step, a reusing chunk has moved less than eps."""
    schedule, warmup_steps, distances = case
    decided = decide_all(Chunkwise(threshold=threshold, warmup_steps=warmup_steps), schedule, distances)
    for chunk in range(schedule.prefix_chunks, schedule.num_chunks):
        computed = set(computed_steps(schedule, decided, chunk))
        moved = 0.0
        for step in range(schedule.num_steps):
            moved = 0.0 if step in computed else moved + distances[chunk][step]
            assert step in computed or moved < threshold


@given(reuse_cases(), sixteenths, sixteenths)
def test_a_higher_threshold_computes_no_more(case, low, high):
    """True at fixed, non-negative distances: the k-th computed step can only come later."""
    schedule, warmup_steps, distances = case
    low, high = sorted((low, high))
    below = decide_all(Chunkwise(threshold=low, warmup_steps=warmup_steps), schedule, distances)
    above = decide_all(Chunkwise(threshold=high, warmup_steps=warmup_steps), schedule, distances)
    for chunk in range(schedule.prefix_chunks, schedule.num_chunks):
        assert len(computed_steps(schedule, above, chunk)) <= len(computed_steps(schedule, below, chunk))


@given(reuse_cases(), st.sampled_from(["own", "global"]))
def test_threshold_zero_computes_everything(case, last_step):
    schedule, warmup_steps, distances = case
    decided = decide_all(Chunkwise(threshold=0.0, warmup_steps=warmup_steps, last_step=last_step), schedule, distances)
    assert [decision.compute for decision in decided] == [row.chunks for row in schedule.rows]


@given(reuse_cases(), sixteenths)
def test_accumulated_is_zero_exactly_after_computing_or_not_moving(case, threshold):
    schedule, warmup_steps, distances = case
    policy = Chunkwise(threshold=threshold, warmup_steps=warmup_steps)
    for row in schedule.rows:
        given_distances = {s.chunk: ChunkDistance(distances[s.chunk][s.step], UNIT) for s in row.steps if s.step}
        before = dict(policy.accumulated)
        compute = policy.decide(row, given_distances, schedule).compute
        for chunk in row.chunks:
            if chunk in compute:
                assert policy.accumulated[chunk] == 0.0
            else:
                assert policy.accumulated[chunk] == before[chunk] + given_distances[chunk].relative


def test_replay_follows_its_rows_in_order_of_position():
    schedule = one_chunk(2)
    replay = Replay(computed=[[0], []])
    assert [replay.decide(row, {}, schedule).compute for row in schedule.rows] == [(0,), ()]
    pair = staged_schedule(2, timesteps(2), 2)
    assert Replay(computed=[[0], [1, 0], [1]]).decide(pair.rows[1], {}, pair).compute == (0, 1)


def test_replay_repeats_what_was_repeated_and_needs_a_model_that_can_only_then():
    pair = staged_schedule(2, timesteps(2), 2)
    replay = Replay(computed=[[0], [1], [1]], repeated=[[], [0], []])
    assert [replay.decide(row, {}, pair).repeat for row in pair.rows] == [(), (0,), ()]
    assert replay.uses == ("repeat",)
    plain = Replay(computed=[[0], [1], [1]], repeated=[[], [], []])
    assert plain == Replay(computed=[[0], [1], [1]])
    assert (plain.uses, plain.decide(pair.rows[1], {}, pair)) == ((), Decision((1,)))
    with pytest.raises(ValueError, match="repeated has 1 rows and computed 3; give as many, or none"):
        Replay(computed=[[0], [1], [1]], repeated=[[0]])


def test_replay_refuses_a_recording_of_another_generation():
    schedule = staged_schedule(2, timesteps(2), 2)
    with pytest.raises(ValueError, match="recorded decisions have 2 rows and this generation 3"):
        Replay(computed=[[0], [1]]).check_schedule(schedule)
    with pytest.raises(ValueError, match="row 0 of the recording computes chunk 1, which is not active there"):
        Replay(computed=[[0, 1], [1], [1]]).check_schedule(schedule)


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf, "0.1", None])
def test_bad_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold=.* must be a finite number of at least 0 \(0 never reuses\)"):
        chunkwise(threshold=threshold, warmup_steps=1)


@pytest.mark.parametrize("warmup_steps", [-1, 1.0, True, "2", None])
def test_bad_warmups_are_refused(warmup_steps):
    with pytest.raises(ValueError, match=r"warmup_steps=.* must be a whole number of at least 0"):
        chunkwise(threshold=0.1, warmup_steps=warmup_steps)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="last_step='none' is unknown; choose 'own' or 'global'"):
        chunkwise(threshold=0.1, warmup_steps=1, last_step="none")


def test_a_fresh_policy_has_the_same_settings_and_nothing_remembered():
    policy = Chunkwise(threshold=0.2, warmup_steps=3, last_step="global", distance="latent")
    first, second = policy.fresh(), policy.fresh()
    first.accumulated[0] = 1.0
    assert second.accumulated == policy.accumulated == {}
    assert first == second == policy
