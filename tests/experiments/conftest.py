"""Small jobs on the embedded model: 2 chunks, 8 steps, a fraction of a second each."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.job.cli import compose_config
from experiments.job.job import Job, make_job

SMALL = [
    "setting.num_frames=48",
    "setting.num_steps=8",
    "num_prompts=2",
    "metrics=[psnr,ssim,caption]",
    "seed=3",
    "workers=1",
    "threads=1",
]


@pytest.fixture
def small_job(tmp_path: Path):
    """Make a Job of a method, writing below tmp_path."""

    def make(*overrides: str) -> Job:
        return make_job(compose_config([*SMALL, f"output_dir={tmp_path}", *overrides]))

    return make
