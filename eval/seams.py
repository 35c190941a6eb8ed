"""How far chunks of a clip begin with a jump: border by border, where eval.caption_score has one figure of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from eval.caption_score import MIN_DIFFERENCE
from eval.clips import Clip


def seam_ratios(frames: Clip, starts: Sequence[int]) -> list[float]:
    """Of every chunk the difference from the frame before it to its first one, over the median difference within the
    two chunks: 1 is no seam, NaN of the first chunk.

    Differences are mean absolute ones of frames, both at least 0.1 grey levels, as in eval.caption_score.

    Args:
        frames: uint8 [F, H, W, 3].
        starts: first frame of every chunk, ascending from 0.
    """
    steps = (np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(frames))
    difference = np.maximum(np.fromiter(steps, float, len(frames) - 1), MIN_DIFFERENCE)
    ends = [*starts[1:], len(frames)]
    ratios = [float("nan")]
    for before, start, end in zip(starts, starts[1:], ends[1:], strict=False):
        within = np.concatenate([difference[before : start - 1], difference[start : end - 1]])
        ratios.append(float(difference[start - 1] / np.median(within)) if len(within) else float("nan"))
    return ratios
