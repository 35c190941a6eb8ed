"""Clips for training: drawn anew for every step of an autoencoder, or how often each of some that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eval.scenes import Scene, plain_scenes, render
from experiments.training.session import TrainingSession


def to_model_range(frames: Tensor) -> Tensor:
    """uint8 [F, 3, H, W] -> float32 [3, F, H, W] in [-1, 1]."""
    return frames.transpose(0, 1).float() / 127.5 - 1.0


def draw_clips(session: TrainingSession, scenes: Iterator[Scene], num_frames: int, batch: int) -> Tensor:
    """Clips of the next scenes, float32 [batch, 3, num_frames, H, W] in [-1, 1]."""
    clips = [render(next(scenes), num_frames, session.generator) for _ in range(batch)]
    return torch.stack([to_model_range(clip) for clip in clips])


def draw_weights(scenes: Sequence[Scene], recipe: dict) -> list[float]:
    """How often each clip is drawn, by ``motion_weights`` of its motion and ``plain_weight`` of its half of the
    grammar."""
    plain = set(plain_scenes())
    of_halves = {True: recipe["plain_weight"], False: 1.0}
    return [recipe["motion_weights"].get(scene.motion, 1.0) * of_halves[scene in plain] for scene in scenes]
