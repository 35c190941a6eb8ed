import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.metrics import structural_similarity
from torchmetrics.image import StructuralSimilarityIndexMeasure

from eval.ssim import ssim, ssim_skimage


def pair(height: int, width: int, frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    image = data.astronaut()
    reference = np.stack([image[20 + 9 * i : 20 + 9 * i + height, 180 : 180 + width] for i in range(frames)])
    noise = np.random.default_rng(0).integers(-25, 26, reference.shape)
    return np.clip(reference.astype(int) + noise, 0, 255).astype(np.uint8), reference


def gaussian_ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Wang et al. 2004 in float64, window sigma 1.5 cut at 5 pixels, frames reflected at the border."""
    means = []
    for x, y in zip(video / 255, reference / 255, strict=True):

        def local_mean(image: np.ndarray) -> np.ndarray:
            return gaussian_filter(image, (1.5, 1.5, 0), truncate=5 / 1.5, mode="mirror")

        mean_x, mean_y = local_mean(x), local_mean(y)
        variance_x, variance_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
        covariance = local_mean(x * y) - mean_x * mean_y
        score = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
        score /= (mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2)
        means.append(score.mean())
    return float(np.mean(means))


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (37, 53)])
def test_equals_the_definition(size):
    video, reference = pair(*size)
    assert 0.3 < ssim(video, reference) < 0.98
    assert ssim(video, reference) == pytest.approx(gaussian_ssim(video, reference), abs=2e-5)


def test_equals_torchmetrics_on_the_whole_clip_whatever_the_batch(monkeypatch):
    video, reference = pair(48, 64, frames=5)
    found, wanted = (torch.from_numpy(clip).permute(0, 3, 1, 2) / 255 for clip in (video, reference))
    whole = float(StructuralSimilarityIndexMeasure(data_range=1.0)(found, wanted))
    for frames_per_batch in (1, 2, 5):
        monkeypatch.setattr("eval.ssim.MAX_BATCH_PIXELS", 48 * 64 * frames_per_batch)
        assert ssim(video, reference) == pytest.approx(whole, abs=1e-6)


def test_skimage_variant_is_the_mean_of_its_default_and_another_number():
    video, reference = pair(64, 64)
    frames = [structural_similarity(b, a, channel_axis=2) for a, b in zip(video, reference, strict=True)]
    assert ssim_skimage(video, reference) == pytest.approx(np.mean(frames), abs=1e-12)
    assert abs(ssim_skimage(video, reference) - ssim(video, reference)) > 1e-3


@pytest.mark.parametrize(("metric", "smallest"), [(ssim, 6), (ssim_skimage, 7)])
def test_smallest_frames(metric, smallest):
    video, reference = pair(smallest, smallest + 3)
    assert np.isfinite(metric(video, reference))
    assert metric(reference, reference) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match=rf"at least {smallest}x{smallest} pixels, got {smallest - 1}x"):
        metric(video[:, 1:], reference[:, 1:])


def test_flat_identical_clip_is_one():
    flat = np.full((2, 16, 16, 3), 255, np.uint8)
    # E[x^2] - E[x]^2 of ones in float32: a last bit, 6e-8, beside the constant of 9e-4 that keeps it from 0/0.
    assert ssim(flat, flat) == pytest.approx(1.0, abs=1e-3)
    assert ssim_skimage(flat, flat) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("metric", [ssim, ssim_skimage])
def test_bad_input(metric):
    video, reference = pair(16, 16)
    with pytest.raises(ValueError, match="differ in shape"):
        metric(video[:, :15], reference)
    with pytest.raises(TypeError, match="uint8"):
        metric(video / 255, reference)
