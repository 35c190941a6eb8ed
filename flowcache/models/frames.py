"""Between frames as people have them, uint8 [F, H, W, 3], and as VAEs do, floats of -1 to 1, [1, 3, F, H, W]."""

from __future__ import annotations

import torch
from torch import Tensor


def as_floats(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [1, 3, F, H, W] in [-1, 1], on its device."""
    return frames.permute(3, 0, 1, 2)[None].to(torch.float32) / 127.5 - 1.0


def as_uint8(video: Tensor) -> Tensor:
    """A VAE's output [1, 3, F, H, W], any float type -> uint8 [F, H, W, 3]; what lies outside [-1, 1] is cut off.

    Raises FloatingPointError where it holds NaN or infinity, which uint8 would hide as black or white. That waits for
    the device, once a call: callers have whole chunks of frames, which leave the device next.
    """
    if not video.is_meta and not video.isfinite().all():
        raise FloatingPointError(
            "the VAE's frames hold NaN or infinity, so that there is no video; check the checkpoint, and the precision "
            "that the VAE runs in"
        )
    return (video[0].float() * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
