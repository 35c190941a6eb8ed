"""Metrics take a clip a few frames at a time: their memory does not grow with its length."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure

from eval import lpips, ssim

# Bytes by which the peak grows from 2 to 8 frames of 720x720, all of which are there from the start.
GROWTH = """
import resource
import numpy as np
import torch
from eval.lpips import lpips
from eval.ssim import ssim

torch.set_num_threads(1)
rng = np.random.default_rng(0)
reference, video = (rng.integers(0, 256, (8, 720, 720, 3), np.uint8) for _ in range(2))
peaks = []
for frames in (2, 8):
    lpips(video[:frames], reference[:frames], backend="own")
    ssim(video[:frames], reference[:frames])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_clip():
    command = [sys.executable, "-c", GROWTH]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    bytes_of_clips = 2 * 8 * 720 * 720 * 3
    assert int(done.stdout) < 4 * bytes_of_clips  # found: 1.5; all frames in one batch: 14 (LPIPS), 35 (SSIM)


@pytest.mark.parametrize(("size", "frames"), [((40, 50), 40), ((40, 50), 3), ((90, 90), 3)])
def test_no_batch_exceeds_its_pixels_but_by_a_single_frame(monkeypatch, size, frames):
    batches = []

    def record(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        assert video.shape == reference.shape
        batches.append(len(video))
        return torch.zeros(len(video), 1, 1, 1)

    monkeypatch.setattr(lpips, "_distance", lambda *args: record)
    update = StructuralSimilarityIndexMeasure.update

    def recorded_update(metric: StructuralSimilarityIndexMeasure, *batch: torch.Tensor) -> None:
        record(*batch)
        update(metric, *batch)

    monkeypatch.setattr(StructuralSimilarityIndexMeasure, "update", recorded_update)
    clip = np.zeros((frames, *size, 3), np.uint8)
    for module, metric in ((lpips, lpips.lpips), (ssim, ssim.ssim)):
        monkeypatch.setattr(module, "MAX_BATCH_PIXELS", 7000)
        metric(clip, clip)
        assert sum(batches) == frames
        assert all(num == 1 or num * size[0] * size[1] <= module.MAX_BATCH_PIXELS for num in batches)
        batches.clear()
