"""Peak signal-to-noise ratio in dB, in the two definitions the field uses (higher is better)."""

import math

from eval.clips import Clip, check_pair

DATA_RANGE = 255
FRAME_CAP_DB = 100.0


def psnr(video: Clip, reference: Clip) -> float:
    """PSNR of the whole clip from one mean squared error over all its pixels. The `psnr` of the tables.

    Equals scikit-image's `peak_signal_noise_ratio(reference, video, data_range=255)`; the error is summed frame by
    frame, because scikit-image works on float64 copies of whatever it is given. Source: FlowCache's evaluation code.

    Args:
        video: uint8 [F, H, W, 3].
        reference: uint8 [F, H, W, 3].

    Returns:
        dB; `float("inf")` for identical clips. JSON knows no infinity, so whoever stores it must spell it out.

    Raises:
        TypeError: a clip is not uint8.
        ValueError: a clip is not [F, H, W, 3] or the shapes differ.
    """
    check_pair(video, reference)
    errors = _frame_errors(video, reference)
    return _decibel(math.fsum(errors) / len(errors))


def psnr_frame(video: Clip, reference: Clip) -> float:
    """Mean over the frames of each frame's PSNR, a frame counting at most 100 dB.

    Without the cap one identical frame would make the mean infinite. Source: TeaCache's evaluation code.

    Args:
        video: uint8 [F, H, W, 3].
        reference: uint8 [F, H, W, 3].

    Returns:
        dB, at most 100.

    Raises:
        TypeError: a clip is not uint8.
        ValueError: a clip is not [F, H, W, 3] or the shapes differ.
    """
    check_pair(video, reference)
    errors = _frame_errors(video, reference)
    return math.fsum(min(_decibel(error), FRAME_CAP_DB) for error in errors) / len(errors)


def _frame_errors(video: Clip, reference: Clip) -> list[float]:
    from skimage.metrics import mean_squared_error

    return [float(mean_squared_error(wanted, found)) for wanted, found in zip(reference, video, strict=True)]


def _decibel(error: float) -> float:
    return 10 * math.log10(DATA_RANGE**2 / error) if error > 0 else math.inf
