"""SeaCache's gate: what diffusers' hook decides, by hand, and on every model."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.hooks.sea_cache import (
    SeaCacheConfig,
    SeaCacheContextState,
    SeaCacheSharedState,
    _SeaCacheForwardMetadata,
)

from baselines.sea_cache import SeaCache
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import method, vanilla
from tests.models import magi_goldens, skyreels_goldens

OPTIONS = {"threshold": 0.25, "most_skips": 2, "warmup_steps": 1}


def computed(policy: SeaCache, distances: list[float]) -> list[int]:
    """Steps of one chunk, whose relative changes are given."""
    schedule = staged_schedule(1, timesteps(len(distances)), window_size=1)
    measured = [{0: ChunkDistance(each, 1 - 1e-8)} if step else {} for step, each in enumerate(distances)]
    rows = zip(schedule.rows, measured, strict=True)
    return [row.index for row, each in rows if policy.decide(row, each, schedule).compute]


def hooks_steps(config: SeaCacheConfig, indicators: torch.Tensor) -> list[int]:
    state, shared, steps = SeaCacheContextState(), SeaCacheSharedState(), []
    for step, indicator in enumerate(indicators):
        metadata = _SeaCacheForwardMetadata(step, 1 - step / len(indicators), len(indicators))
        if shared.resolve_gate(state, metadata, [indicator], config):
            steps.append(step)
            state.consecutive_cached = 0
        else:
            state.consecutive_cached += 1
    return steps


@pytest.mark.parametrize("most_skips", [1, 2, 5])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.5, 3.0])
@pytest.mark.parametrize("warmup_steps", [1, 4])
def test_it_decides_as_diffusers_hook(threshold, most_skips, warmup_steps):
    turns = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    indicators = torch.cumsum(turns * torch.linspace(0.02, 0.4, 24)[:, None], 0) + 1
    before, after = indicators[:-1], indicators[1:]
    distances = [math.nan, *((after - before).abs().mean(1) / before.abs().mean(1)).tolist()]
    config = SeaCacheConfig(threshold=threshold, max_consecutive_cached=most_skips, retention_steps=warmup_steps)
    policy = SeaCache(threshold=threshold, most_skips=most_skips, warmup_steps=warmup_steps)
    assert computed(policy, distances) == hooks_steps(config, indicators)


def test_steps_by_hand():
    assert computed(SeaCache(**OPTIONS), [9, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625, 0]) == [0, 2, 5, 7]
    assert computed(SeaCache(**OPTIONS), [9, math.nan, 0, 0, 0]) == [0, 1, 4]
    assert computed(SeaCache(**OPTIONS | {"most_skips": 0}), [9, 0, 0, 0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_skips_and_is_vanilla_at_a_threshold_of_0(goldens):
    trace = Trace()
    goldens.latents_of(goldens.small_generation(method(SeaCache(**OPTIONS | {"threshold": 5.0}))), trace)
    assert {entry.action for entry in trace.entries} == {"compute", "reuse"}
    careful = goldens.latents_of(goldens.small_generation(method(SeaCache(**OPTIONS | {"threshold": 0}))))
    assert torch.equal(careful, goldens.latents_of(goldens.small_generation(vanilla(attention="cached"))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": math.nan}, "threshold=nan must be a finite number of at least 0"),
        ({"most_skips": -1}, r"most_skips=-1 must be a whole number of at least 0 \(0 never skips\)"),
        ({"warmup_steps": 0.5}, "warmup_steps=0.5 must be a whole number of at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SeaCache(**OPTIONS | options)


def test_a_warmup_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=9 is more than the 8 steps of a chunk"):
        SeaCache(**OPTIONS | {"warmup_steps": 9}).check_schedule(staged_schedule(1, timesteps(8), window_size=1))
