"""Small jobs on the embedded model, 2 chunks of 8 steps, a fraction of a second each; and run.py in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import run
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
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]  # Hydra's handlers would outlive the test


@pytest.fixture
def small_job(tmp_path: Path):
    """Make a Job of a method, writing below tmp_path."""

    def make(*overrides: str) -> Job:
        return make_job(compose_config([*SMALL, f"output_dir={tmp_path}", *overrides]))

    return make


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run run.py's main in this process: exit code and what it said on standard error; ``printed`` is the other."""

    def main(*arguments: str) -> tuple[int, str]:
        given = [f"output_dir={tmp_path / 'results'}"] if not any("output_dir=" in a for a in arguments) else []
        monkeypatch.setattr(sys, "argv", ["run.py", *QUIET, *given, *arguments])
        monkeypatch.setattr(run, "_exit_codes", [0])
        capsys.readouterr()
        try:
            code = run.main()
        finally:
            GlobalHydra.instance().clear()
        said = capsys.readouterr()
        main.printed = said.out
        return code, said.err

    return main
