"""What takes seconds to import is imported by what needs it alone. In processes of their own: this one has it all."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.job.errors import plain
from experiments.job.help import documentation
from experiments.job.paths import ROOT
from tests.experiments.conftest import SMALL

COMMANDS = sorted(path.stem for path in (ROOT / "experiments" / "commands").glob("*.py") if path.stem != "__init__")
SLOW = ("torch", "transformers", "diffusers", "torchmetrics", "pandas", "matplotlib", "scipy.stats", "skimage", "wandb")


def imported(*command: str | Path) -> tuple[set[str], str]:
    """The slow modules that a command imports, and what it prints."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    timed = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in timed} & set(SLOW), ran.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["method=flowcache_fast", "-h"]])
def test_help_of_a_run_imports_nothing_slow(arguments):
    slow, said = imported("run.py", *arguments)
    assert slow == set()
    assert "seed=1234" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_its_modules_docstring(name):
    slow, said = imported("-m", f"experiments.{name}", "--help")
    assert slow == set()
    assert said == plain(documentation(import_module(f"experiments.{name}").MODULE)) + "\n"


def test_help_of_a_benchmark_imports_nothing_slow():
    slow, said = imported("-m", "experiments.bench", "latency", "--help")
    assert slow == set()
    assert said == plain(documentation("experiments.benchmarks.latency")) + "\n"


def test_records_are_told_without_torch(tmp_path):
    (tmp_path / "runs").mkdir()
    for arguments in (["--help"], ["list", "--output-dir", str(tmp_path)]):
        slow, _ = imported("-m", "experiments.records", *arguments)
        assert slow == set()


@pytest.mark.slow
def test_a_run_with_nothing_to_do_imports_no_more_than_it_prints(tmp_path):
    again = ["run.py", *SMALL, "method=vanilla", f"output_dir={tmp_path}", "workers=2", "wandb.mode=offline"]
    slow, _ = imported(*again)
    assert {"torch", "pandas", "matplotlib", "wandb"} <= slow
    slow, said = imported(*again)
    assert slow == {"torch"}
    assert "2 finished already, 0 videos to make" in said
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert f"W&B (offline)  {next(tmp_path.glob('wandb/offline-run-*/files'))}" in said.replace("\n", "")
