"""Latents as a denoiser of their noise level would see them: SeaCache's filter (arXiv 2602.18993), in space alone.

Images hold power that falls with frequency f as 1 / f^3, and noise as much at all. A Wiener filter of a latent that is
(1 - s) times an image and s times noise passes (1 - s) P / ((1 - s)^2 P + s^2), P = 1 / |f|^3, so that early on coarse
structure alone counts. As in diffusers' hook (hooks/sea_cache.py) a frequency's gain is the product of those along the
axes, over their mean. SeaCache filters time as well; a chunk is a few frames long, and those before have other noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POWER = 3.0  # that an image's spectrum falls with
LEAST = 1e-6  # share of image or noise
_GUARD = 1e-16


def filtered(latents: Sequence[Tensor], noise: Sequence[float]) -> Tensor:
    """Of chunks' latents [1, C, b, h, w] whose share of noise is from 0 to 1: float32 [N, C, b, h, w]."""
    rows, columns = latents[0].shape[-2:]
    device = latents[0].device
    powers = [
        1 / (torch.fft.fftfreq(size, device=device, dtype=torch.float32).abs() ** POWER + _GUARD)
        for size in (rows, columns)
    ]
    found = []
    for latent, share in zip(latents, noise, strict=True):
        along = [_gain(power, min(max(share, LEAST), 1 - LEAST)) for power in powers]
        gain = along[0][:, None] * along[1][: columns // 2 + 1]
        spectrum = torch.fft.rfft2(latent.float()) * gain
        found.append(torch.fft.irfft2(spectrum, s=(rows, columns)))
    return torch.cat(found)


def _gain(power: Tensor, noise: float) -> Tensor:
    """Along one axis, of mean 1."""
    image = 1 - noise
    gain = image * power / (image**2 * power + noise**2 + _GUARD)
    return gain / gain.mean()
