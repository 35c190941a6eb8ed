"""Noise levels, lists of steps and conversions against the official numbers (goldens/wan: scheduler)."""

from __future__ import annotations

import pytest
import torch

from flowcache.models.wan.noise_levels import clean_of, grid, level_of, noised, step_times
from tests.models.wan_goldens import manifest, tensors

SCHEDULER, FACTS = tensors("scheduler"), manifest("scheduler")
LISTS = FACTS["lists"]
TIMES = SCHEDULER["in.query_timesteps"].tolist()
SHIFT = 5.0


@pytest.mark.parametrize("shift", [1, 3, 5, 8])
def test_the_grid_is_the_official_one(shift):
    torch.testing.assert_close(grid(float(shift)), SCHEDULER[f"sigmas.shift{shift}"], atol=1e-6, rtol=0)
    torch.testing.assert_close(1000 * grid(float(shift)), SCHEDULER[f"timesteps.shift{shift}"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_steps_are_the_official_ones(name):
    facts = LISTS[name]
    times = step_times(facts["given"], facts["shift"], facts["warp"])
    assert times == pytest.approx(facts["timesteps"], abs=1e-4)
    assert torch.tensor(times) == pytest.approx(SCHEDULER[f"list.{name}"], abs=1e-4)
    assert [level_of(time, facts["shift"]) for time in times] == pytest.approx(facts["sigma"], abs=1e-6)


def test_a_times_level_is_that_of_the_nearest_grid_time():
    found = [level_of(time, SHIFT) for time in FACTS["nearest"]["query"]]
    assert found == pytest.approx(FACTS["nearest"]["sigma"], abs=1e-6)
    assert level_of(0.0, SHIFT) == pytest.approx(0.00498, abs=1e-5)


def test_noising_and_conversions_are_the_official_ones():
    a, b, levels = SCHEDULER["in.a"], SCHEDULER["in.b"], [level_of(time, SHIFT) for time in TIMES]
    for name, convert in (("add_noise", noised), ("flow_to_x0", clean_of)):
        out = torch.stack([convert(x, y, level) for x, y, level in zip(a, b, levels, strict=True)])
        torch.testing.assert_close(out, SCHEDULER[name], atol=1e-6, rtol=0)
    # The other way round, which nothing here needs: what it gave for a clean latent makes that clean latent.
    flows = SCHEDULER["x0_to_flow"]
    back = torch.stack([clean_of(flow, y, level) for flow, y, level in zip(flows, b, levels, strict=True)])
    torch.testing.assert_close(back, a.expand_as(back), atol=5e-6, rtol=0)
