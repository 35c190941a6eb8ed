"""Clips of scenes, as they are and as a small autoencoder leaves them, for the tests of the caption check."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from eval.caption_score import ATTRIBUTES, CaptionScore
from eval.clips import Clip
from eval.scenes import Scene, render


def clip(scene: Scene, num_frames: int = 96, seed: int = 0) -> Clip:
    frames = render(scene, num_frames, torch.Generator().manual_seed(seed))
    return frames.permute(0, 2, 3, 1).contiguous().numpy()


def blurred(frames: Clip, sigma: float) -> Clip:
    """Blur and noise of standard deviation 6, about what a round trip through a small autoencoder leaves."""
    blur = gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0), mode="wrap")
    noise = np.random.default_rng(frames.size).normal(0, 6, frames.shape)
    return np.clip(blur + noise, 0, 255).round().astype(np.uint8)


def all_right(result: CaptionScore) -> bool:
    return all(getattr(result, attribute) for attribute in ATTRIBUTES)
