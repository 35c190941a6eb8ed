"""ARCache's gate: whose change decides, by hand, and what it does on every model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from baselines.ar_cache import ArCache
from baselines.from_first import FromFirst
from experiments.job.compose import named_method
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Schedule, sequential_schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import method, vanilla
from tests.models import magi_goldens, skyreels_goldens

OPTIONS = {"threshold": 1.0, "warmup_steps": 1}
STAGED = staged_schedule(3, timesteps(8), window_size=2)  # a chunk starts when the one before is half-way


def computed(policy: ArCache, schedule: Schedule, changes: Mapping[int, float]) -> dict[int, list[int]]:
    """Own steps that each chunk computes, where each changes by so much in every step."""
    steps: dict[int, list[int]] = {}
    for row in schedule.rows:
        measured = {s.chunk: ChunkDistance(changes[s.chunk], 1 - 1e-8) for s in row.steps if s.step > 0}
        for chunk in policy.decide(row, measured, schedule).compute:
            steps.setdefault(chunk, []).append(row.step_of(chunk).step)
    return steps


def test_the_first_chunk_is_exact_and_the_others_follow_the_change_of_those_before():
    steps = computed(ArCache(**OPTIONS), STAGED, {0: 0.5, 1: 0.25, 2: 9.0})
    assert steps[0] == list(range(8))
    # While chunk 0 is being made its half decides: 0.5, 1.0, 0.5. Then chunk 1's own quarter, as there is none before.
    assert steps[1] == [0, 2, 5, 7]
    # Chunk 1's quarter for four steps; then its own change, which is large.
    assert steps[2] == [0, 4, 5, 6, 7]


def test_one_chunk_after_another_has_no_history_in_the_making():
    schedule = sequential_schedule(2, (8.0, 7.0, 6.0, 5.0, 4.0, 3.0))
    assert computed(ArCache(**OPTIONS), schedule, {0: 0.0, 1: 0.4}) == {0: list(range(6)), 1: [0, 3, 5]}


def test_given_chunks_are_no_first_one():
    schedule = staged_schedule(3, timesteps(8), window_size=2, prefix_chunks=1)
    steps = computed(ArCache(**OPTIONS | {"threshold": 9.0}), schedule, dict.fromkeys(range(3), 0.0))
    assert steps == {1: list(range(8)), 2: [0, 7]}


def test_what_is_no_number_computes_and_so_does_a_threshold_of_0():
    assert computed(ArCache(**OPTIONS), STAGED, dict.fromkeys(range(3), math.nan))[2] == list(range(8))
    assert computed(ArCache(**OPTIONS | {"threshold": 0}), STAGED, dict.fromkeys(range(3), 0.0))[2] == list(range(8))
    assert computed(ArCache(threshold=9.0, warmup_steps=4), STAGED, dict.fromkeys(range(3), 0.0))[2] == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_skips_and_is_vanilla_at_a_threshold_of_0(goldens):
    trace = Trace()
    skipping = method(ArCache(threshold=2.0, warmup_steps=2), forecast=FromFirst())
    latents = goldens.latents_of(goldens.small_generation(skipping), trace)
    assert latents.isfinite().all()
    assert {entry.action for entry in trace.entries} == {"compute", "forecast"}
    assert all(entry.action == "compute" for entry in trace.entries if entry.chunk == 0)
    careful = method(ArCache(threshold=0, warmup_steps=0), forecast=FromFirst())
    expected = goldens.latents_of(goldens.small_generation(vanilla(attention="cached")))
    assert torch.equal(goldens.latents_of(goldens.small_generation(careful)), expected)


def test_the_method_composes_it_with_what_the_first_chunk_showed():
    made, parts = named_method("ar_cache", "magi", "embedded")
    assert (type(made.reuse), made.forecast, parts["forecast"]) == (ArCache, FromFirst(), "from_first")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1 must be a finite number of at least 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
        ({"distance": "clean"}, "distance='clean' is unknown; choose 'embedded_latent' or 'latent'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ArCache(**OPTIONS | options)


def test_a_warmup_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=9 is more than the 8 steps of a chunk"):
        ArCache(**OPTIONS | {"warmup_steps": 9}).check_schedule(STAGED)
