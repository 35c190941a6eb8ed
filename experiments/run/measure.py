"""All figures about one video: quality against its reference, what its caption promised, and the work that it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from eval.errors import MetricUnavailable
from eval.lpips import lpips
from eval.psnr import psnr, psnr_frame
from eval.ssim import ssim, ssim_skimage
from experiments.records import Record
from experiments.records.metrics import is_current
from experiments.run.latents import LATENT_SNR
from flowcache.trace import Trace

QUALITY: dict[str, Callable[..., float]] = {
    "psnr": psnr,
    "psnr_frame": psnr_frame,
    "ssim": ssim,
    "ssim_skimage": ssim_skimage,
    "lpips": lpips,  # alex
    "lpips_vgg": partial(lpips, net="vgg"),
}
COMPARED = {*QUALITY, LATENT_SNR}  # with the baseline's video
FLOW_JUMP = "flow_jump"
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


def lacking(record: Record, names: tuple[str, ...], is_baseline: bool) -> tuple[str, ...]:
    """Those metrics that a finished record says nothing of, or calls unavailable though they could be had now, or that
    other code measured.

    A baseline's quality is never asked for: it is what the others are compared with.
    """
    asked = (name for name in names if not (is_baseline and name in COMPARED))
    return tuple(name for name in asked if not (is_current(record, name) and _told(record, name)))


def _told(record: Record, name: str) -> bool:
    if name in (LATENT_SNR, FLOW_JUMP):
        return name in record.metrics  # without latents only making the video again changes anything
    if name in QUALITY:
        return name in record.metrics and not (name in record.notes and _available(name))
    return record.caption is not None or name in record.notes


def _available(name: str) -> bool:
    """Whether a metric of quality can be had here, which is tried on a small frame."""
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    return not quality(frame, frame, (name,))[1]


RANDOM_WEIGHTS = "the weights are random, so that no video means anything"


def refused(names: tuple[str, ...]) -> tuple[dict[str, None], dict[str, str]]:
    """Metrics of a video of random weights: none can be had, and why."""
    return {name: None for name in names if name in COMPARED}, dict.fromkeys(names, RANDOM_WEIGHTS)


def caption(
    frames: ndarray, prompt: str, chunk_frames: int, first_chunk_frames: int
) -> tuple[dict[str, Any] | None, str | None]:
    """What the video shows against its caption; None and the reason for captions that cannot be checked."""
    from eval.caption_score import score  # imported late: it needs scipy, and a run with nothing to do does without

    try:
        return asdict(score(frames, prompt, chunk_frames, first_chunk_frames)), None
    except ValueError as error:
        return None, str(error)


def motion_jump(frames: ndarray, chunk_frames: int, first_chunk_frames: int) -> float | None:
    """How far motion breaks at chunk borders, in pixels; None of a video of one chunk."""
    from eval.flow_jump import flow_jump  # imported late, as above

    return flow_jump(frames, [0, *range(first_chunk_frames, len(frames), chunk_frames)])


def describe_work(record: Record, trace: Trace) -> None:
    record.flops, record.computed_fraction = trace.flops, trace.computed_fraction
    record.flops_by_kind, record.flops_by_part = trace.flops_by_kind(), trace.flops_by_part()
    record.kv_bytes_allocated, record.kv_bytes_by_use = trace.kv_bytes_allocated, trace.kv_bytes_by_use
    record.kv_bytes_used_peak, record.kv_bits = trace.kv_bytes_used_peak, trace.kv_bits
    record.forecast_bytes_peak, record.remarks = trace.forecast_bytes_peak, list(trace.remarks)
