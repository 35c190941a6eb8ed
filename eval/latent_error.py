"""How far a video's latents are from its reference's, in dB: the signal to noise ratio before any decoder."""

from __future__ import annotations

import math

from torch import Tensor

CAP_DB = 140.0  # of latents that are equal, or nearer than their rounding


def latent_snr_db(latents: Tensor, reference: Tensor) -> float:
    """10 log10 of the reference's mean square over that of the difference, at most 140 dB. Tensors of one shape."""
    error = (latents.double() - reference.double()).square().mean().item()
    power = reference.double().square().mean().item()
    return CAP_DB if error <= power * 10 ** (-CAP_DB / 10) else 10 * math.log10(power / error)
