"""Causal Wan's noise levels: a shifted grid of a thousand, lists of few steps on it, and what a level does to a latent.

Times are 1000 times the noise level, real numbers from 1000 (noise) to 0 (clean).
Source: guandeh17/Self-Forcing: utils/scheduler.py, utils/wan_wrapper.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

GRID_STEPS = 1000


@cache
def grid(shift: float) -> Tensor:
    """Noise levels float32 [1000], falling from 1: an even grid, shifted towards noise by s x / (1 + (s - 1) x)."""
    even = torch.linspace(1.0, 0.0, GRID_STEPS + 1, dtype=torch.float32)[:-1]
    return shift * even / (1 + (shift - 1) * even)


def step_times(steps: Sequence[float], shift: float, warped: bool = True) -> tuple[float, ...]:
    """The times of a list of steps: where it is warped, entry v is the grid's time number 1000 - v, and 0 stays 0."""
    if not warped:
        return tuple(float(step) for step in steps)
    times = torch.cat([1000 * grid(shift), torch.zeros(1)])
    return tuple(times[GRID_STEPS - int(step)].item() for step in steps)


@cache
def level_of(time: float, shift: float) -> float:
    """The noise level of the grid's time that is nearest: of time 0 the grid's smallest, never 0."""
    levels = grid(shift)
    return levels[(1000 * levels - time).abs().argmin()].item()


def noised(clean: Tensor, noise: Tensor, level: float) -> Tensor:
    """A clean latent at a noise level; shapes as they come."""
    return (1 - level) * clean + level * noise


def clean_of(velocity: Tensor, latent: Tensor, level: float) -> Tensor:
    """The clean latent that a velocity (noise - clean) makes of a latent, in its type: one pass, where the source works
    it out in float64 and rounds."""
    return torch.sub(latent, velocity, alpha=level)
