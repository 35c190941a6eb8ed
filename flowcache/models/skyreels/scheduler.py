"""SkyReels-V2's noise levels and solver: one UniPC a chunk, since chunks are at different steps.

Upstream keeps one a latent frame; the solver works element by element, so that frames at one step can share it.
Source: SkyworkAI/SkyReels-V2: skyreels_v2_infer/scheduler/fm_solvers_unipc.py.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor


def noise_levels(num_steps: int, shift: float) -> tuple[Tensor, list[int]]:
    """Noise levels float32 [num_steps + 1], falling to 0, and the steps' timesteps, 1000 times them cut to integers.

    An even grid from 0.999 to 0 without its end, shifted towards noise by s x / (1 + (s - 1) x). diffusers' own flow
    levels differ.
    """
    # Upstream's 0.999 has been through float32.
    even = np.linspace(float(np.float32(0.999)), 0.0, num_steps + 1)[:-1]
    shifted = shift * even / (1 + (shift - 1) * even)
    levels = torch.from_numpy(np.append(shifted, 0.0).astype(np.float32))
    return levels, [int(level * 1000) for level in shifted]


def new_solver(levels: Tensor, times: list[int]) -> UniPCMultistepScheduler:
    """A solver at its first step: flow prediction, order 2; ``levels`` and ``times`` from ``noise_levels``."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.sigmas, scheduler.timesteps = levels, torch.tensor(times)
    scheduler.num_inference_steps = len(times)
    scheduler.set_begin_index(0)
    return scheduler
