"""All figures about one video: quality against its reference, and what its caption promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from numpy import ndarray

from eval.caption_score import score
from eval.errors import MetricUnavailable
from eval.lpips import lpips
from eval.psnr import psnr, psnr_frame
from eval.ssim import ssim, ssim_skimage

QUALITY: dict[str, Callable[..., float]] = {
    "psnr": psnr,
    "psnr_frame": psnr_frame,
    "ssim": ssim,
    "ssim_skimage": ssim_skimage,
    "lpips": lpips,  # alex
    "lpips_vgg": partial(lpips, net="vgg"),
}
ON_DEVICE = ("ssim", "lpips", "lpips_vgg")  # the others are numpy's and scikit-image's


def quality(
    frames: ndarray, reference: ndarray, names: tuple[str, ...], device: str = "cpu"
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Metrics by name, and for those that cannot be had (None) the reason. Clips uint8 [F, H, W, 3].

    ``device`` is where those run that can, a few frames at a time.
    """
    values: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for name in names:
        if name in QUALITY:
            try:
                where = {"device": device} if name in ON_DEVICE else {}
                values[name] = QUALITY[name](frames, reference, **where)
            except MetricUnavailable as error:
                values[name], notes[name] = None, str(error)
    return values, notes


RANDOM_WEIGHTS = "the weights are random, so that no video means anything"


def refused(names: tuple[str, ...]) -> tuple[dict[str, None], dict[str, str]]:
    """Metrics of a video of random weights: none can be had, and why."""
    return {name: None for name in names if name in QUALITY}, dict.fromkeys(names, RANDOM_WEIGHTS)


def caption(
    frames: ndarray, prompt: str, chunk_frames: int, first_chunk_frames: int
) -> tuple[dict[str, Any] | None, str | None]:
    """What the video shows against its caption; None and the reason for captions that cannot be checked."""
    try:
        return asdict(score(frames, prompt, chunk_frames, first_chunk_frames)), None
    except ValueError as error:
        return None, str(error)
