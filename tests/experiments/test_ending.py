"""What is left of a run that a signal ends: nothing that works on, and records that say so. With real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from experiments.job.paths import ROOT
from experiments.records import RecordStore
from experiments.records.__main__ import runs

pytestmark = pytest.mark.slow
# Half a minute a video, so that all are in the making while the test looks.
LONG = ["setting.num_steps=64", "metrics=[psnr]", "threads=1", "latency_pairs=0"]
START_S, END_S = 300, 20  # generous: the machine may be busy


@pytest.fixture(autouse=True)
def listening():
    """Programs that are started ignore Ctrl-C where this one does, as in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(output_dir: Path, *command: str) -> subprocess.Popen:
    """A command of the suite in a session of its own, as a terminal gives it."""
    arguments = [*LONG, "wandb.mode=disabled", f"output_dir={output_dir}", "hydra/job_logging=none"]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=(output_dir / "out").open("w", encoding="utf-8"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def session(leader: int) -> list[psutil.Process]:
    """All that is left of a session, but for what has ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def states(output_dir: Path) -> Counter[str]:
    """How many videos are in which state; one that is being queued is running, too, but has no record yet."""
    store = RecordStore(output_dir)
    found = runs(store) if store.run_path("").is_dir() else ()
    return Counter("being queued" if run.state == "running" and run.record is None else run.state for run in found)


def wait_for(condition, seconds: float) -> float:
    """Seconds until a condition held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not in {seconds} s"
        time.sleep(0.2)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGKILL, 2), (signal.SIGTERM, 1)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_that_is_ended_leaves_no_process_and_says_so(tmp_path, number, workers):
    run = started(tmp_path, "run.py", "method=vanilla", f"workers={workers}", "num_prompts=4")
    try:
        begun = {"running": workers, "queued": 4 - workers}
        wait_for(lambda: states(tmp_path) == begun or run.poll() is not None, START_S)
        assert run.poll() is None, (tmp_path / "out").read_text(encoding="utf-8")
        (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)  # a terminal's Ctrl-C goes to all
        run.wait(END_S)
        wait_for(lambda: not session(run.pid), END_S)
        assert states(tmp_path) == {"interrupted": workers, "queued": 4 - workers}
        said = "run.py: stopped; finished videos are kept, and the same command goes on from them"
        assert (said in (tmp_path / "out").read_text(encoding="utf-8")) == (number != signal.SIGKILL)
        assert run.returncode == (1 if number != signal.SIGKILL else -signal.SIGKILL)
    finally:
        for process in session(run.pid):
            process.kill()


SWEEP = ("-m", "experiments.sweep", "experiment=ablation_threshold", "tasks=2")
MULTIRUN = ("run.py", "-m", "seed=1,2", "method=vanilla")


@pytest.mark.parametrize(
    ("launcher", "command", "number", "videos"),
    [
        ("joblib", SWEEP, signal.SIGINT, 18),
        ("joblib", MULTIRUN, signal.SIGKILL, 4),
        ("submitit_local", SWEEP, signal.SIGKILL, 18),
        ("submitit_local", MULTIRUN, signal.SIGTERM, 4),
    ],
    ids=("joblib-sweep-SIGINT", "joblib-multirun-SIGKILL", "submitit-sweep-SIGKILL", "submitit-multirun-SIGTERM"),
)
def test_tasks_of_this_machine_end_with_who_started_them(tmp_path, launcher, command, number, videos):
    if find_spec(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher") is None:
        pytest.skip(f"hydra/launcher={launcher} is not installed")
    run = started(tmp_path, *command, f"hydra/launcher={launcher}", "num_prompts=2", "device=cpu", "workers=1")
    try:
        begun = {"running": 2, "queued": videos - 2}
        wait_for(lambda: states(tmp_path) == begun or run.poll() is not None, START_S)
        assert run.poll() is None, (tmp_path / "out").read_text(encoding="utf-8")
        os.kill(run.pid, number)
        run.wait(END_S)
        wait_for(lambda: not session(run.pid), END_S)
        assert states(tmp_path)["interrupted"] == 2
    finally:
        for process in session(run.pid):
            process.kill()
