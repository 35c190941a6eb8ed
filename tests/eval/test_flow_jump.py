"""Optical flow at chunk borders: none for smooth motion, about a jump's length for a jump."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from eval.flow_jump import MAX_SIDE, flow_jump

TEXTURE = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64)), 3, mode="wrap")
TEXTURE = ((TEXTURE - TEXTURE.min()) / np.ptp(TEXTURE) * 255).astype(np.uint8)


def clip(steps: list[int], texture: np.ndarray = TEXTURE) -> np.ndarray:
    """The texture carried to the right by so many pixels from frame to frame, as on a torus."""
    places = np.cumsum([0, *steps])
    return np.stack([np.repeat(np.roll(texture, place, axis=1)[..., None], 3, axis=2) for place in places])


def test_smooth_motion_does_not_break_and_a_jump_breaks_it_by_its_length():
    smooth, jumps = [1] * 7, [1, 1, 1, 4, 1, 1, 1]
    assert flow_jump(clip(smooth), [0, 4]) == pytest.approx(0, abs=0.05)
    assert flow_jump(clip(jumps), [0, 4]) == pytest.approx(3, abs=0.3)
    assert flow_jump(clip(jumps), [0, 2, 4]) == pytest.approx((0 + 3) / 2, abs=0.4)  # the mean over borders
    assert flow_jump(clip(jumps), [0, 2]) == pytest.approx(0, abs=0.1)  # a jump elsewhere is none of a border
    assert flow_jump(clip([0] * 7), [0, 4]) == 0.0


def test_motion_that_stops_at_a_border_breaks_there():
    assert flow_jump(clip([2, 2, 2, 2, 0, 0, 0]), [0, 4]) == pytest.approx(1, abs=0.2)  # between 2 and 0 on either side


def test_large_frames_are_read_small_and_the_figure_is_in_their_own_pixels():
    factor = 5
    large = np.kron(TEXTURE, np.ones((factor, factor), np.uint8))
    assert max(large.shape) > MAX_SIDE
    steps = [factor * step for step in (1, 1, 1, 4, 1, 1, 1)]
    small = flow_jump(clip([1, 1, 1, 4, 1, 1, 1]), [0, 4])
    assert flow_jump(clip(steps, large), [0, 4]) == pytest.approx(factor * small, rel=0.3)


def test_one_chunk_has_no_border_and_a_first_chunk_may_be_one_frame():
    assert flow_jump(clip([1] * 3), [0]) is None
    assert flow_jump(clip([1] * 3), [0, 1]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("frames", "error", "said"),
    [
        (np.zeros((4, 8, 64, 3), np.uint8), ValueError, "at least 16 pixels"),
        (np.zeros((4, 64, 64, 3), np.float32), TypeError, "uint8"),
    ],
)
def test_other_clips_are_refused(frames, error, said):
    with pytest.raises(error, match=said):
        flow_jump(frames, [0, 2])
