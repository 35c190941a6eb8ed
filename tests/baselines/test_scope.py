"""SCOPE's three actions: which chunk does what, by hand, and that it does all three on every model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.scope import Scope
from experiments.job.compose import named_method
from flowcache.forecast.linear import Linear
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.replay import Replay
from flowcache.schedule import Schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import scope, vanilla
from tests.models import magi_goldens, skyreels_goldens

UNIT = 1.0 - 1e-8  # a magnitude at which the guard against 0/0 leaves relative distances exact
OPTIONS = {"repeat_threshold": 0.5, "threshold": 1.0, "most_forecasts": 2, "warmup_steps": 2}


def actions(policy: Scope, schedule: Schedule, distances: Sequence[float], chunk: int = 0) -> str:
    """A letter a step of one chunk: c computes, r repeats, f forecasts; ``distances`` are by its own steps."""
    letters = ""
    for row in schedule.rows:
        given_distances = {s.chunk: ChunkDistance(distances[s.step], UNIT) for s in row.steps if s.step > 0}
        decision = policy.decide(row, given_distances, schedule)
        assert not set(decision.compute) & set(decision.repeat)
        if chunk in row.chunks:
            letters += "c" if chunk in decision.compute else "r" if chunk in decision.repeat else "f"
    return letters


def of_one_chunk(distances: Sequence[float], **options) -> str:
    schedule = staged_schedule(1, timesteps(len(distances)), window_size=1)
    return actions(Scope(**OPTIONS | options), schedule, distances)


@pytest.mark.parametrize(
    ("distances", "options", "expected"),
    [
        # Accumulated: 0.25 repeats, 0.5 and 0.75 forecast, 1.0 computes and starts over; the last step computes.
        ([9, 9, 0.25, 0.25, 0.25, 0.25, 0.25, 0], {}, "ccrffcrc"),
        # Both thresholds are strict.
        ([9, 9, 0.5, 0.5, 0.25, 0], {}, "ccfcrc"),
        # Two forecasts at most, however small the change; repeats in between count for nothing.
        ([9, 9, 0.5, 0.125, 0.125, 0.125, 0], {}, "ccffcrc"),
        ([9, 9, 0.5, 0.125, 0.125, 0.125, 0], {"most_forecasts": 9}, "ccffffc"),
        ([9, 9, 0.25, 0.25, 0.25, 0], {"most_forecasts": 0}, "ccrcrc"),
        # After one computed output there is nothing to forecast from: it repeats, and computes in the middle, too.
        ([9, 0.25, 0.5, 0.5, 0.25, 0], {"warmup_steps": 0}, "crcffc"),
        # One threshold alone: the reuse of FlowCache, and forecasts from the first change on.
        ([9, 9, 0.25, 0.5, 0.5, 0], {"repeat_threshold": 1.0}, "ccrrcc"),
        ([9, 9, 0, 0.25, 0, 0], {"repeat_threshold": 0.0}, "ccffcc"),
        # What is no number computes, and is forgotten.
        ([9, 9, math.nan, 0.25, 0.25, 0], {}, "cccrfc"),
        ([9, 9, 0, 0, 0, 0], {"warmup_steps": 6}, "cccccc"),
    ],
)
def test_actions_by_hand(distances, options, expected):
    assert of_one_chunk(distances, **options) == expected


def test_a_rescaled_distance_may_fall_back_below_the_first_threshold_and_nothing_skips_at_zero():
    falling = {"distance": "rescaled_modulation", "polynomial": (1.0, -1.0)}
    assert of_one_chunk([9, 9, 1.75, 0.5, 1.5, 1.5, 0], **falling) == "ccfrfcc"
    assert of_one_chunk([0] * 6, **falling, repeat_threshold=0.0, threshold=0.0) == "cccccc"
    assert of_one_chunk([0] * 6, **falling, repeat_threshold=0.0) == "ccffcc"


def test_outputs_of_before_a_jump_are_nothing_to_forecast_from():
    """The second chunk's outputs jump at the step at which the first one has finished."""
    schedule = staged_schedule(2, timesteps(8), window_size=2)
    (jump,) = schedule.jumps(1)
    distances = [9, 9, *(0.75 for _ in range(6))]
    assert actions(Scope(**OPTIONS), schedule, distances, chunk=0) == "ccfcfcfc"
    shown = actions(Scope(**OPTIONS), schedule, distances, chunk=1)
    after = shown[jump:].index("c")
    assert shown[jump + after + 1] == "c"  # the second computed output on the jump's far side, before any forecast
    assert "f" in shown[:jump]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=30), st.floats(0, 2), st.integers(0, 5))
def test_where_nothing_forecasts_it_is_chunkwise(distances, threshold, warmup_steps):
    schedule = staged_schedule(1, timesteps(len(distances)), window_size=1)
    options = {"threshold": threshold, "warmup_steps": min(warmup_steps, len(distances))}
    ours, theirs = Scope(repeat_threshold=threshold, most_forecasts=3, **options), Chunkwise(**options)
    for row in schedule.rows:
        given_distances = {s.chunk: ChunkDistance(distances[s.step], UNIT) for s in row.steps if s.step > 0}
        decision = ours.decide(row, given_distances, schedule)
        assert decision.compute == theirs.decide(row, given_distances, schedule).compute
        assert {*decision.compute, *decision.repeat} == set(row.chunks)
        assert ours.accumulated == theirs.accumulated


@pytest.mark.parametrize(
    ("goldens", "options"),
    [
        (magi_goldens, {"repeat_threshold": 0.1, "threshold": 0.4}),
        (skyreels_goldens, {"repeat_threshold": 0.1, "threshold": 0.3}),
    ],
    ids=["magi", "skyreels"],
)
def test_every_model_does_all_three_and_a_replay_does_them_again(goldens, options):
    method = scope(**options, most_forecasts=2, warmup_steps=2, forecast=Linear(damping=0.5, limit=0.1))
    trace, again = Trace(), Trace()
    latents = goldens.latents_of(goldens.small_generation(method), trace)
    assert latents.isfinite().all()
    assert set(Counter(entry.action for entry in trace.entries)) == {"compute", "reuse", "forecast"}
    replay = Replay(computed=trace.computed_rows(), repeated=trace.repeated_rows())
    assert torch.equal(goldens.latents_of(goldens.small_generation(replace(method, reuse=replay)), again), latents)
    assert [entry.action for entry in again.entries] == [entry.action for entry in trace.entries]


def test_on_skyreels_too_it_is_vanilla_where_it_never_skips():
    careful = scope(repeat_threshold=0.0, threshold=0.0, most_forecasts=2, warmup_steps=0, forecast=Linear())
    latents, expected = (
        skyreels_goldens.latents_of(skyreels_goldens.small_generation(method))
        for method in (careful, vanilla(attention="cached"))
    )
    assert torch.equal(latents, expected)


@pytest.mark.parametrize(("model", "setting"), [("magi", "embedded"), ("skyreels", "embedded"), ("skyreels", "paper")])
def test_the_method_composes_it_with_a_forecast_under_control(model, setting):
    method, parts = named_method("scope", model, setting)
    assert isinstance(method.reuse, Scope)
    assert 0 < method.reuse.repeat_threshold < method.reuse.threshold
    assert method.forecast == Linear(damping=0.5, limit=0.1)
    assert parts["forecast"] == "linear_limited"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"repeat_threshold": 1.5},
            "repeat_threshold=1.5 must not be above threshold=1.0: a chunk repeats below the first, forecasts between",
        ),
        (
            {"repeat_threshold": -0.1},
            r"repeat_threshold=-0.1 must be a finite number of at least 0 \(0 never repeats\)",
        ),
        ({"threshold": math.inf}, r"threshold=inf must be a finite number of at least 0 \(0 never reuses\)"),
        ({"most_forecasts": -1}, "most_forecasts=-1 must be a whole number of at least 0"),
        ({"most_forecasts": 1.5}, "most_forecasts=1.5 must be a whole number of at least 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
        ({"distance": "rescaled_modulation"}, "does not go with polynomial=None"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Scope(**OPTIONS | options)


def test_a_warmup_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=9 is more than the 8 steps of a chunk"):
        Scope(**OPTIONS | {"warmup_steps": 9}).check_schedule(staged_schedule(1, timesteps(8), window_size=1))
