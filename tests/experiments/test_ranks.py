"""run.py in several processes: what is asked for wrongly, who leads and who follows, and whose time counts."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from eval.latency import Take
from eval.ssim import ssim
from eval.video_io import read_lossless
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import Job, make_job
from experiments.job.paths import ROOT
from experiments.job.ranks import device_of_rank
from experiments.records import store_of
from experiments.run.ranks import dismiss, follow, slowest, together
from experiments.run.runner import Runner
from flowcache.trace import Trace
from tests.experiments.conftest import SMALL
from tests.processes import together as in_processes


def shared_job(**env: str) -> Job:
    os.environ.update({"WORLD_SIZE": "2", "RANK": "0"} | env)
    return make_job(compose_config([*SMALL, "method=vanilla", "parallel=heads"]))


@pytest.fixture
def of_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_a_job_says_what_it_shares_out_and_with_how_many(of_torchrun):
    job = make_job(compose_config(["method=vanilla", "parallel=heads"]))
    assert (job.settings["parallel"], job.settings["ranks"]) == ("heads", 2)
    assert job.workers == 1
    assert "parallel" not in make_alone().settings
    assert (device_of_rank("cuda"), device_of_rank("cpu")) == ("cuda:1", "cpu")


def make_alone() -> Job:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "1")
        return make_job(compose_config(["method=vanilla"]))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "torchrun started 2 processes, and with parallel=none each would make all videos"),
        (["parallel=head"], "parallel=head is unknown; did you mean heads"),
        (["parallel=heads", "workers=2"], "workers=2: with parallel=heads one video is made at a time"),
        (["parallel=heads", "device=cuda:1"], "each process has a GPU of its own; give device=cuda"),
    ],
)
def test_a_wrong_request_is_refused(of_torchrun, overrides, reason):
    with pytest.raises(BadInput, match=reason):
        make_job(compose_config(["method=vanilla", *overrides]))


def test_one_process_is_told_how_to_start_more():
    with pytest.raises(BadInput, match="start them with torchrun --nproc-per-node 2"):
        make_job(compose_config(["method=vanilla", "parallel=branches"]))


def test_other_commands_do_not_wait_for_processes_that_none_leads(of_torchrun):
    job = make_job(compose_config([*SMALL, "method=vanilla", "parallel=heads"]))
    with pytest.raises(BadInput, match=r"parallel=heads is for run\.py alone, started by torchrun"):
        job.load_model()


def named(job: Job, word: str) -> str:
    return f"{word} by {dist.get_rank()}"


def one_fails(job: Job) -> None:
    if dist.get_rank() == 1:
        raise ValueError("no such card")
    dist.barrier()


def lead_then_fail(rank: int) -> None:
    """What each gets is kept in a file; then the second process fails."""
    job = shared_job(RANK=str(rank))
    taken = Take(np.zeros((1, 1, 1, 3), np.uint8), [1.0 + rank, 3.0 - rank], {}, Trace(), 1.0 + rank)
    late, done = slowest(taken), ""
    if rank == 0:
        done = together(job, partial(named, word="done"))
        # One measures what all have made, and torchmetrics must not wait for the others.
        clip = np.zeros((2, 16, 16, 3), np.uint8)
        done += f", ssim {ssim(clip, clip)}"
        dismiss(job)
    else:
        follow(job)
    told = (late.chunk_latency_s, late.peak_memory_gib, done)
    torch.save(told, Path(os.environ["TOLD"]) / f"told{rank}.pt")
    if rank == 0:
        together(job, one_fails)
    follow(job)


def test_the_first_leads_the_slowest_counts_and_a_failure_ends_all(tmp_path, monkeypatch):
    monkeypatch.setenv("TOLD", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"RanksFailed: rank 1 of parallel=heads: .*no such card"):
        in_processes(lead_then_fail, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"told{rank}.pt", weights_only=False) for rank in range(2))
    assert first == ([2.0, 3.0], 2.0, "done by 0, ssim 1.0")
    assert second == ([2.0, 3.0], 2.0, "")


def test_torchrun_makes_a_video_that_one_process_tells_of(tmp_path):
    """Of two guidance branches: as one process makes it, to the bit."""
    small = ["model=skyreels", "method=vanilla_kv", "num_prompts=1", "setting.num_frames=17", "setting.num_steps=2"]
    small += ["latency_pairs=0", "wandb.mode=disabled", "baseline=vanilla_kv", f"output_dir={tmp_path}"]
    alone = Runner(make_job(compose_config(small))).run()[0]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    done = subprocess.run(
        [*start, *small, "parallel=branches"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("plan: skyreels") == done.stdout.count("all videos, traces, records") == 1
    store = store_of(make_job(compose_config(small)))
    (key,) = {path.parent.name for path in tmp_path.glob("runs/*/record.json")} - {alone.key}
    record = store.read(key)
    assert (record.status, record.settings["parallel"], record.settings["ranks"]) == ("finished", "branches", 2)
    assert record.flops == alone.flops
    videos = [read_lossless(store.video_path(key)) for key in (record.key, alone.key)]
    assert np.array_equal(*videos)
