"""The solver takes diffusers' steps, up to rounding."""

from __future__ import annotations

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flowcache.models.wan.unipc import Solver, noise_levels


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("published", [False, True])
def test_every_step_is_that_of_diffusers(num_steps, published):
    """``published``: the first step's latent is overwritten by the second's, as views of it are upstream."""
    levels, times = noise_levels(num_steps, 8.0)
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    theirs.sigmas, theirs.timesteps, theirs.num_inference_steps = levels, torch.tensor(times), num_steps
    theirs.set_begin_index(0)
    ours, random = Solver(levels), torch.Generator().manual_seed(num_steps)
    latent = expected = torch.randn(1, 4, 2, 3, 3, generator=random)
    for time in times:
        velocity = torch.randn(latent.shape, generator=random)
        expected = theirs.step(velocity, time, expected, return_dict=False)[0]
        latent = ours.step(ours.clean(velocity, latent), latent)
        torch.testing.assert_close(latent, expected, atol=1e-5, rtol=1e-5)  # logarithms of all levels at once
        if published and time == times[0]:
            ours.last, theirs.last_sample = latent, expected
    assert latent.isfinite().all()


def test_a_straight_flow_ends_where_it_leads():
    """Of a constant velocity every step is exact: the clean latent is noise less velocity."""
    noise, clean = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    levels, times = noise_levels(7, 5.0)
    solver, latent = Solver(levels.double()), clean + levels[0] * (noise - clean)
    for _ in times:
        latent = solver.step(solver.clean(noise - clean, latent), latent)
    torch.testing.assert_close(latent, clean, atol=1e-6, rtol=0)
