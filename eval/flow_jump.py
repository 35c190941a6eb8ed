"""How far motion breaks at chunk borders, by optical flow: of any clip, where eval.caption_score knows its own alone.

TV-L1 flow as scikit-image has it (Zach et al., 2007), on grey frames at most 256 pixels wide and high.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.clips import Clip, check_clip

MAX_SIDE = 256  # pixels that flow is read at; the result is in the clip's own pixels
MIN_SIDE = 16
STILL = 0.25  # pixels a frame; where less moves, there is no motion that could break


def flow_jump(frames: Clip, starts: Sequence[int]) -> float | None:
    """Mean over a clip's chunk borders of how far the flow across one differs from that beside it, in pixels.

    Across a border the flow from the last frame of a chunk to the first of the next is compared with the mean of the
    one before and the one after it, and the length of the difference averaged over all pixels of which one of the three
    moves. 0 is smooth motion, or none; a picture that jumps has about the jump's length. None of a clip of one chunk.

    Args:
        frames: uint8 [F, H, W, 3], H and W >= 16.
        starts: first frame of every chunk, ascending from 0; chunks of two frames or more, the first of one or more.

    Raises TypeError or ValueError for another clip.
    """
    check_clip(frames, "frames")
    borders = [start for start in starts if 0 < start < len(frames)]
    if min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"flow needs frames of at least {MIN_SIDE} pixels a side; got shape {list(frames.shape)}")
    return float(np.mean([_jump(frames, border) for border in borders])) if borders else None


def _jump(frames: Clip, border: int) -> float:
    across = _flow(frames, border)
    beside = [_flow(frames, index) for index in (border - 1, border + 1) if 0 < index < len(frames)]
    speed = np.max([np.hypot(*flow) for flow in (across, *beside)], axis=0)
    moves = speed > STILL
    if not moves.any() or not beside:
        return 0.0
    return float(np.hypot(*(across - np.mean(beside, axis=0)))[moves].mean())


def _flow(frames: Clip, index: int) -> NDArray[np.float32]:
    """From the frame before ``index`` to it, [2, h, w] (down, right), in pixels of the clip."""
    from skimage.color import rgb2gray  # imported late: a second, that a run with nothing to do does without
    from skimage.registration import optical_flow_tvl1
    from skimage.transform import downscale_local_mean

    factor = -(-max(frames.shape[1:3]) // MAX_SIDE)
    before, after = (
        downscale_local_mean(rgb2gray(frames[i]), (factor, factor)).astype(np.float32) for i in (index - 1, index)
    )
    return factor * optical_flow_tvl1(before, after)
