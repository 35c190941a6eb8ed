"""Latents as a denoiser of their noise level would see them: SeaCache's filter (arXiv 2602.18993), in space alone.

Images hold power that falls with frequency f as 1 / f^3, and noise as much at all. A Wiener filter of a latent that is
(1 - s) times an image and s times noise passes (1 - s) P / ((1 - s)^2 P + s^2), P = 1 / |f|^3, so that early on coarse
structure alone counts. As in diffusers' hook (hooks/sea_cache.py) a frequency's gain is the product of those along the
axes, over their mean. SeaCache filters time as well; a chunk is a few frames long, and those before have other noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

POWER = 3.0  # that an image's spectrum falls with
LEAST = 1e-6  # share of image or noise
_GUARD = 1e-16


def filtered(latents: Sequence[Tensor], noise: Sequence[float]) -> Tensor:
    """Of chunks' latents [1, C, b, h, w], all of one size, whose share of noise is from 0 to 1: float32
    [N, C, b, h, w]."""
    chunks = torch.cat([latent.float() for latent in latents])
    rows, columns = chunks.shape[-2:]
    gains = torch.stack([_gain(rows, columns, share, chunks.device) for share in noise])
    spectrum = torch.fft.rfft2(chunks) * gains[:, None, None]
    return torch.fft.irfft2(spectrum, s=(rows, columns))


@lru_cache(maxsize=256)  # chunks come to the same noise one after another
def _gain(rows: int, columns: int, noise: float, device: torch.device) -> Tensor:
    """[h, w // 2 + 1], of mean 1 over all frequencies."""
    noise = min(max(noise, LEAST), 1 - LEAST)
    image = 1 - noise
    along = []
    for size in (rows, columns):
        power = 1 / (torch.fft.fftfreq(size, device=device, dtype=torch.float32).abs() ** POWER + _GUARD)
        gain = image * power / (image**2 * power + noise**2 + _GUARD)
        along.append(gain / gain.mean())
    return along[0][:, None] * along[1][: columns // 2 + 1]
