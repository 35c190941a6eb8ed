"""What is behind the shapes of a clip: its colour, and stripes with the way they move. For eval.caption_score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.clips import Clip
from eval.scenes import BACKGROUNDS, CAMERAS, SPEED, STRIPE_WIDTH, STRIPES

MIN_WAVE = 0.6  # of the data's: how strongly stripes of its width must show in a frame
LAG_FRAMES = 3  # stripes go by less than half a period in so many frames, so that their way is clear

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Backdrop:
    """The background of a clip, frame by frame.

    Attributes:
        rgb: float32 [F, 3, 4096] or [F, 3, 1], what every pixel would be without shapes.
        tone: float32 [F, 3], its colour; of stripes, the mean of both.
        waves: complex [F], of stripes: how strongly they show (1: as in the data) and where they stand (a turn is a
            period); None for an even background.
    """

    rgb: Floats32
    tone: Floats32
    waves: NDArray[np.complex128] | None = None


def even_backdrop(frames: Clip) -> Backdrop:
    """One colour a frame: shapes cover a quarter of it at most, so that the median of its pixels misses them."""
    lattice = frames[:, ::3, ::3].reshape(len(frames), -1, 3).transpose(0, 2, 1)
    tone = np.median(np.ascontiguousarray(lattice), axis=2).astype(np.float32)
    return Backdrop(tone[:, :, None], tone)


def striped_backdrop(frames: Clip) -> Backdrop:
    """One colour a column: a shape is lower than half a frame, so that the median of a column's pixels misses it."""
    size = frames.shape[1]
    columns = np.median(np.ascontiguousarray(frames.transpose(0, 3, 2, 1)), axis=3).astype(np.float32)  # [F, 3, W]
    tone = columns.mean(axis=2)
    height = _heights(columns, tone)
    turn = np.exp(2j * np.pi * np.arange(size) / (2 * STRIPE_WIDTH))
    ideal = np.abs(np.repeat([0.0, 1.0] * (size // (2 * STRIPE_WIDTH)), STRIPE_WIDTH) @ turn)
    return Backdrop(np.tile(columns, (1, 1, size)), tone, height @ turn / ideal)


def _heights(columns: Floats32, tone: Floats32) -> NDArray[np.float64]:
    """How far each column [F, W] is on the way from the background's colour (0) to that of its stripes (1)."""
    pairs = {name: (np.array(BACKGROUNDS[name]), np.array(STRIPES[name])) for name in BACKGROUNDS}
    means = np.array([(one + other) / 2 for one, other in pairs.values()])
    nearest = np.square(tone[:, None] - means).sum(axis=2).argmin(axis=1)
    base = np.array([pair[0] for pair in pairs.values()])[nearest]
    step = np.array([pair[1] - pair[0] for pair in pairs.values()])[nearest]
    return np.einsum("fcw,fc->fw", columns - base[:, :, None], step) / np.square(step).sum(axis=1)[:, None]


def palette(striped: bool) -> dict[str, tuple[int, int, int]]:
    """What ``Backdrop.tone`` is of the data's backgrounds."""
    if not striped:
        return BACKGROUNDS
    return {
        name: tuple((one + other) // 2 for one, other in zip(rgb, STRIPES[name], strict=True))
        for name, rgb in BACKGROUNDS.items()
    }


def camera(waves: NDArray[np.complex128], chunk: NDArray[np.intp], min_share: float) -> str | None:
    """Which way stripes move, a key of ``CAMERAS``; None where they do not show, or move in no one way.

    Args:
        waves: of `Backdrop`.
        chunk: int [F], each frame's chunk; motion is read inside chunks.
        min_share: of the frames, in which stripes must show, and of the moments, in which they must move so.
    """
    start = np.flatnonzero(chunk[:-LAG_FRAMES] == chunk[LAG_FRAMES:])
    if not start.size or (np.abs(waves) >= MIN_WAVE).mean() < min_share:
        return None
    turned = np.angle(waves[start + LAG_FRAMES] * waves[start].conj())
    velocity = turned / (2 * np.pi) * 2 * STRIPE_WIDTH / LAG_FRAMES
    for name, pixels_a_frame in CAMERAS.items():
        if (np.abs(velocity - pixels_a_frame) <= SPEED / 2).mean() >= min_share:
            return name
    return None
