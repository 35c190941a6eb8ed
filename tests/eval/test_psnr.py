import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import peak_signal_noise_ratio

from eval.psnr import psnr, psnr_frame

CLIP = arrays(np.uint8, (3, 5, 4, 3))


def constant(*levels: int) -> np.ndarray:
    return np.stack([np.full((8, 6, 3), level, np.uint8) for level in levels])


def test_known_errors():
    reference = constant(100, 100)
    # Frame errors 1 and 9: the clip has error 5, the mean of the decibels is another number.
    video = constant(101, 103)
    assert psnr(video, reference) == pytest.approx(10 * math.log10(255**2 / 5), abs=1e-12)
    assert psnr_frame(video, reference) == pytest.approx(10 * math.log10(255**2 / 3), abs=1e-12)


def test_differences_do_not_wrap_around():
    assert psnr(constant(0), constant(255)) == 0.0
    assert psnr(constant(255), constant(0)) == 0.0


def test_identical_clips():
    clip = constant(7, 9)
    assert psnr(clip, clip) == math.inf
    assert psnr_frame(clip, clip) == 100.0


def test_one_identical_frame_counts_100_db_in_the_frame_mean_and_nothing_more_in_the_clip():
    reference, video = constant(50, 50), constant(50, 51)
    one_level = 10 * math.log10(255**2)
    assert psnr_frame(video, reference) == pytest.approx((100 + one_level) / 2)
    assert psnr(video, reference) == pytest.approx(one_level + 10 * math.log10(2))


def test_a_frame_above_the_cap_counts_as_the_cap():
    reference = np.zeros((1, 700, 900, 3), np.uint8)
    video = reference.copy()
    video[0, 0, 0, 0] = 1
    assert 100 < psnr(video, reference) < math.inf
    assert psnr_frame(video, reference) == 100.0


@settings(max_examples=40, deadline=None)
@given(video=CLIP, reference=CLIP)
def test_equals_scikit_image_over_the_whole_clip(video, reference):
    if np.array_equal(video, reference):
        assert psnr(video, reference) == math.inf
    else:
        assert psnr(video, reference) == pytest.approx(
            peak_signal_noise_ratio(reference, video, data_range=255), abs=1e-9
        )


@settings(max_examples=20, deadline=None)
@given(video=CLIP, reference=CLIP, order=st.permutations(range(3)))
def test_symmetric_and_blind_to_frame_order(video, reference, order):
    assert psnr(video, reference) == psnr(reference, video)
    assert psnr(video[order], reference[order]) == psnr(video, reference)
    assert psnr_frame(video[order], reference[order]) == psnr_frame(video, reference)


@pytest.mark.parametrize("metric", [psnr, psnr_frame])
def test_bad_input_says_what_was_expected(metric):
    clip = constant(1, 2)
    with pytest.raises(ValueError, match=r"video \[1, 8, 6, 3\] and reference \[2, 8, 6, 3\] differ"):
        metric(clip[:1], clip)
    with pytest.raises(TypeError, match=r"video must be a numpy array of dtype uint8.*float32"):
        metric(clip.astype(np.float32), clip)
    with pytest.raises(TypeError, match=r"reference must be a numpy array of dtype uint8.*list"):
        metric(clip, clip.tolist())
    with pytest.raises(ValueError, match=r"video must have shape \[F, H, W, 3\], got \[8, 6, 3\]"):
        metric(clip[0], clip[0])
    with pytest.raises(ValueError, match="empty"):
        metric(clip[:0], clip[:0])
