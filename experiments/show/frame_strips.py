"""Frames of the baseline's video, of each method's, and of their difference, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.show.style import COLUMN_WIDTH_IN, TITLE_CHARACTERS, styled

_GAP = 2  # pixels between frames
_HIGHEST_GAIN = 64


def strip(video: np.ndarray, num_frames: int) -> np.ndarray:
    """Evenly spaced frames [h, w', 3] of a video [F, h, w, 3], left to right: one from the middle of each of
    ``num_frames`` equal parts."""
    middles = [int(len(video) * (part + 0.5) / num_frames) for part in range(num_frames)]
    gap = np.full((video.shape[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for middle in middles for part in (video[middle], gap)][:-1], axis=1)


def difference(video: np.ndarray, other: np.ndarray, gain: int) -> np.ndarray:
    """Absolute difference of two uint8 arrays of one shape, ``gain`` times as bright, cut off at 255."""
    return np.minimum(np.abs(video.astype(np.int16) - other) * gain, 255).astype(np.uint8)


def common_gain(videos: Mapping[str, np.ndarray], original: np.ndarray) -> int:
    """The largest power of two, up to 64, that cuts off no more than a hundredth of the median method's difference."""
    differences = [np.quantile(np.abs(video.astype(np.int16) - original), 0.99) for video in videos.values()]
    typical, gain = float(np.median(differences)), 1
    while gain < _HIGHEST_GAIN and 2 * gain * typical <= 255:
        gain *= 2
    return gain


@styled()
def draw_frames(
    original: np.ndarray, videos: Mapping[str, np.ndarray], num_frames: int, subject: str, baseline: str
) -> Figure:
    """The baseline's frames, then each method's with their difference to those, all differences equally brightened.

    Args:
        original: uint8 [F, h, w, 3], the baseline's.
        videos: by label, of the same shape.
        num_frames: how many are shown, a chunk each.
    """
    gain = common_gain(videos, original)
    rows = {baseline: strip(original, num_frames)}
    for label, video in videos.items():
        rows[label] = strip(video, num_frames)
        rows[f"difference x {gain}\n({label.partition(chr(10))[0]})"] = strip(
            difference(video, original, gain), num_frames
        )
    height, width = rows[baseline].shape[:2]
    inches = 0.78 * COLUMN_WIDTH_IN * height / width + 0.03
    figure, panels = plt.subplots(len(rows), 1, figsize=(COLUMN_WIDTH_IN, inches * len(rows) + 0.4), squeeze=False)
    figure.get_layout_engine().set(h_pad=0.01, hspace=0)
    for axes, (label, shown) in zip(panels[:, 0], rows.items(), strict=True):
        axes.imshow(shown, interpolation="none")
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=5)
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.grid(visible=False)
    figure.suptitle(f"{fill(subject, TITLE_CHARACTERS)}\na frame of every chunk", fontsize=6)
    return figure
