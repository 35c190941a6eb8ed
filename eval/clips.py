"""What a clip is for the metrics: uint8 [F, H, W, 3], F >= 1, RGB."""

import numpy as np
from numpy.typing import NDArray

Clip = NDArray[np.uint8]


def check_clip(clip: Clip, name: str = "video") -> None:
    """Refuse anything but a uint8 [F, H, W, 3] array with at least one pixel.

    Raises:
        TypeError: not a numpy array of dtype uint8.
        ValueError: wrong shape or empty.
    """
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
        found = f"dtype {clip.dtype}" if hasattr(clip, "dtype") else type(clip).__name__
        raise TypeError(f"{name} must be a numpy array of dtype uint8 (0..255), got {found}")
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"{name} must have shape [F, H, W, 3], got {list(clip.shape)}")
    if clip.size == 0:
        raise ValueError(f"{name} is empty: shape {list(clip.shape)}")


def check_pair(video: Clip, reference: Clip, min_side: int = 1, metric: str = "this metric") -> None:
    """Refuse two clips that cannot be compared frame by frame.

    Args:
        video: uint8 [F, H, W, 3].
        reference: uint8 [F, H, W, 3].
        min_side: smallest height and width in pixels that the metric is defined for.
        metric: its name, for the message.

    Raises:
        TypeError: a clip is not uint8.
        ValueError: a clip is not [F, H, W, 3], the shapes differ, or the frames are too small.
    """
    check_clip(video, "video")
    check_clip(reference, "reference")
    if video.shape != reference.shape:
        raise ValueError(
            f"video {list(video.shape)} and reference {list(reference.shape)} differ in shape [F, H, W, 3]; "
            "compare clips of one length and size"
        )
    height, width = video.shape[1:3]
    if min(height, width) < min_side:
        raise ValueError(f"{metric} needs frames of at least {min_side}x{min_side} pixels, got {height}x{width}")
