"""The metrics that a job can ask for, and the frames that each is defined on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import ListConfig

from eval import flow_jump
from eval.lpips import ARCHITECTURES
from eval.ssim import MIN_SIDE, MIN_SIDE_SKIMAGE
from experiments.job.errors import BadInput
from experiments.job.names import nearest

# By name the smallest side of a frame, in pixels.
METRICS = {
    "psnr": 1,
    "psnr_frame": 1,
    "ssim": MIN_SIDE,
    "ssim_skimage": MIN_SIDE_SKIMAGE,
    "lpips": ARCHITECTURES["alex"].min_side,
    "lpips_vgg": ARCHITECTURES["vgg"].min_side,
    "caption": 1,  # of other sizes than the embedded models' it says so
    "flow_jump": flow_jump.MIN_SIDE,  # needs no reference
    "latent_snr": 1,  # in dB; of latents, which are then kept beside the video
}


def read_metrics(names: Any) -> tuple[str, ...]:
    """The metrics that a configuration lists. Raises BadInput for unknown ones."""
    if not isinstance(names, ListConfig):
        raise BadInput(f"metrics={names} must be a list, such as metrics=[psnr,ssim]")
    unknown = [str(name) for name in names if name not in METRICS]
    if unknown:
        raise BadInput(f"unknown metric {unknown[0]!r}; {nearest(unknown[0], list(METRICS))}")
    return tuple(names)


def check_frame_size(names: Sequence[str], height: int, width: int) -> None:
    """Refuse metrics that are not defined on frames of this size, in pixels. Raises BadInput."""
    too_small = [name for name in names if min(height, width) < METRICS[name]]
    if too_small:
        rest = ",".join(name for name in names if name not in too_small)
        raise BadInput(
            f"{', '.join(too_small)}: no metric of frames of {height} x {width} pixels; make setting.height and "
            f"setting.width at least {max(METRICS[name] for name in too_small)}, or give metrics=[{rest}]"
        )
