"""Wan's noise levels and solver for models that follow the flow: one UniPC a chunk, as chunks are at different steps.

SkyReels-V2 keeps one a latent frame; the solver works element by element, so that frames at one step can share it.
Source: SkyworkAI/SkyReels-V2: skyreels_v2_infer/scheduler/fm_solvers_unipc.py.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
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


class Solver:
    """UniPC of order 2 (arXiv 2302.04867, its B(h) = e^h - 1 variant) on a flow: predicts, and corrects a step later.

    diffusers' solver waits for the device several times a step; this one computes its coefficients on the host, float32
    as there, and gives the same bits.

    Args:
        levels: from ``noise_levels``.

    Attributes:
        last: the latent that the last step started from, corrected.
    """

    def __init__(self, levels: Tensor) -> None:
        self.last: Tensor | None = None
        self._levels, self._log_snr = levels, torch.log(1 - levels) - torch.log(levels)
        self._step = 0
        self._order = 0  # of the last step
        self._clean: list[Tensor] = []  # the last two estimates of the clean latent

    def clean(self, velocity: Tensor, latent: Tensor) -> Tensor:
        """The estimate of the clean latent that a velocity makes of a latent in the step that comes next."""
        return latent - self._levels[self._step] * velocity

    def copy(self) -> Solver:
        """As it stands now; neither sees the other's next steps. Latents are shared, since none changes in place."""
        twin = copy(self)
        twin._clean = [*self._clean]
        return twin

    @property
    def bytes(self) -> int:
        """Of the latents that it keeps."""
        return sum(latent.nbytes for latent in (*self._clean, self.last) if latent is not None)

    def step(self, clean: Tensor, latent: Tensor) -> Tensor:
        """From one noise level to the next: estimate of the clean latent (``clean``) and latent, float32 of one shape,
        which may be kept -> latent."""
        step = self._step
        if step > 0:
            latent = self._correct(clean)
        self._clean = [*self._clean[-1:], clean]
        # The first step knows no difference yet, and the last goes to no noise, infinitely far.
        self._order = min(2, len(self._levels) - 1 - step, step + 1)
        self.last = latent
        self._step += 1
        scale, move, h = self._coefficients(step)
        slopes = 0.0
        if self._order == 2:
            slopes = 0.5 * ((self._clean[0] - clean) / self._ratio(step, h))
        return scale * latent - move * clean - move * slopes

    def _correct(self, clean: Tensor) -> Tensor:
        """The last step again, now that the clean latent is estimated at its end too."""
        step, before = self._step - 1, self._clean[-1]
        scale, move, h = self._coefficients(step)
        slopes, weight = 0.0, torch.full_like(self._levels[0], 0.5)
        if self._order == 2:
            ratio = self._ratio(step, h)
            first, weight = self._weights(ratio, h)
            slopes = first * ((self._clean[0] - before) / ratio)
        return scale * self.last - move * before - move * (slopes + weight * (clean - before))

    def _coefficients(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the latent, of clean ones and their differences, and the step's length in log signal to noise."""
        level, following = self._levels[step], self._levels[step + 1]
        h = self._log_snr[step + 1] - self._log_snr[step]
        return following / level, (1 - following) * torch.expm1(-h), h

    def _ratio(self, step: int, h: Tensor) -> Tensor:
        """The length of the step before in that of this one, negative."""
        return (self._log_snr[step - 1] - self._log_snr[step]) / h

    @staticmethod
    def _weights(ratio: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Of the difference before and the one across a step of order 2, so that it is exact to that order."""
        first = torch.expm1(-h) / -h - 1
        second = first / -h - 0.5
        ratios = torch.stack([ratio, torch.ones_like(ratio)])
        matrix = torch.stack([torch.ones_like(ratios), ratios])
        right = torch.stack([first, second * 2]) / torch.expm1(-h)
        before, across = torch.linalg.solve(matrix, right)
        return before, across
