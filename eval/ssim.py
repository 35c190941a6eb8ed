"""Structural similarity, mean over the frames (1 is identical), in the two definitions in use.

The definitions give different numbers for one pair (0.545 against 0.570 in one case), so each has its own name.
"""

import numpy as np
import torch

from eval.clips import Clip, check_pair
from eval.precision import full_float32

# Smallest frame side in pixels: reflecting a border of 5 takes 6, scikit-image's default window spans 7.
MIN_SIDE = 6
MIN_SIDE_SKIMAGE = 7
# Pixels in one pass: bounds the float32 copies to a few hundred MB whatever the clip's length.
MAX_BATCH_PIXELS = 2**20


def ssim(video: Clip, reference: Clip, *, device: str | torch.device = "cpu") -> float:
    """SSIM with a gaussian window (sigma 1.5, 11 x 11), data range 1, in float32. The `ssim` of the tables.

    torchmetrics' StructuralSimilarityIndexMeasure(data_range=1.0), as in FlowCache's evaluation code. The frame is
    reflected at its border and every pixel counts, where scikit-image leaves the border out.

    Args:
        video: uint8 [F, H, W, 3], H and W at least 6.
        reference: uint8 [F, H, W, 3].
        device: where it is computed, in float32 without TF32.

    Returns:
        mean SSIM in [-1, 1].

    Raises:
        TypeError: a clip is not uint8.
        ValueError: a clip is not [F, H, W, 3], the shapes differ, or the frames are too small.
    """
    check_pair(video, reference, MIN_SIDE, "ssim")
    # Imported when used: torchmetrics takes seconds to import.
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    # Where processes make a video together, one of them measures it: it must not wait for the others' measurements.
    metric = StructuralSimilarityIndexMeasure(data_range=1.0, sync_on_compute=False).to(device)
    frames_per_batch = max(1, MAX_BATCH_PIXELS // (video.shape[1] * video.shape[2]))
    with full_float32():
        for start in range(0, len(video), frames_per_batch):
            frames = slice(start, start + frames_per_batch)
            found, wanted = (
                torch.from_numpy(np.ascontiguousarray(clip[frames])).to(device).permute(0, 3, 1, 2).float() / 255
                for clip in (video, reference)
            )
            metric.update(found, wanted)
    return float(metric.compute())


def ssim_skimage(video: Clip, reference: Clip) -> float:
    """SSIM as scikit-image computes it by default: a flat 7 x 7 window, data range 255, in float64.

    Args:
        video: uint8 [F, H, W, 3], H and W at least 7.
        reference: uint8 [F, H, W, 3].

    Returns:
        mean SSIM in [-1, 1].

    Raises:
        TypeError: a clip is not uint8.
        ValueError: a clip is not [F, H, W, 3], the shapes differ, or the frames are too small.
    """
    check_pair(video, reference, MIN_SIDE_SKIMAGE, "ssim_skimage")
    from skimage.metrics import structural_similarity

    return float(
        np.mean(
            [
                structural_similarity(wanted, found, channel_axis=-1, data_range=255)
                for wanted, found in zip(reference, video, strict=True)
            ]
        )
    )
