"""Seams at chunk borders, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from eval.caption_score import score
from eval.scenes import SIZE
from eval.seams import seam_ratios


def clip(jumps: dict[int, int], num_frames: int = 24) -> np.ndarray:
    """Each frame one grey level brighter than the one before, and by so many more at some."""
    levels = 20 + np.cumsum([1 + jumps.get(frame, 0) for frame in range(num_frames)])
    return np.broadcast_to(levels[:, None, None, None], (num_frames, SIZE, SIZE, 3)).astype(np.uint8)


def test_every_border_has_its_own_ratio_and_the_first_chunk_none():
    ratios = seam_ratios(clip({6: 3, 18: 7, 9: 50}), [0, 6, 12, 18])
    assert np.isnan(ratios[0])
    assert ratios[1:] == [4.0, 1.0, 8.0]  # a jump within a chunk is no seam


def test_their_mean_is_that_of_the_caption_score():
    frames = clip({6: 3, 12: 5, 18: 7})
    whole = score(frames, "a red circle moving up on a light background", 6)
    assert np.mean(seam_ratios(frames, [0, 6, 12, 18])[1:]) == pytest.approx(whole.seam_ratio)


def test_a_still_clip_has_no_seam_and_chunks_of_one_frame_have_nothing_to_compare_with():
    assert seam_ratios(np.zeros((4, 8, 8, 3), np.uint8), [0, 2])[1] == 1.0
    assert np.isnan(seam_ratios(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])[1])
