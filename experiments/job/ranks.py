"""The processes that torchrun started for one video (``parallel=``): which this one is, and what a job asks of them."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache

import torch
from torch import distributed as dist

from experiments.job.errors import BadInput
from experiments.job.names import nearest
from flowcache.parallel import ALONE, KINDS, Parallel

# Beyond it a process that others wait for within a video counts as lost.
LIMIT = timedelta(minutes=30)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    """Processes that torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_ranks(parallel: str, device: str, workers: int | None) -> None:
    """Refuse a job that its processes cannot do together. Raises BadInput."""
    if parallel not in KINDS:
        raise BadInput(f"parallel={parallel} is unknown; {nearest(str(parallel), KINDS)}")
    if parallel == "none":
        if num_ranks() > 1:
            raise BadInput(
                f"torchrun started {num_ranks()} processes, and with parallel=none each would make all videos; give "
                "parallel=branches or heads, or start python alone: a sweep shares its videos out by tasks=<n>"
            )
        return
    if num_ranks() == 1:
        raise BadInput(
            f"parallel={parallel} makes a video in several processes; start them with torchrun --nproc-per-node 2 "
            f"run.py ... parallel={parallel}"
        )
    if workers not in (None, 1):
        raise BadInput(f"workers={workers}: with parallel={parallel} one video is made at a time; leave it out")
    if device.startswith("cuda:"):
        raise BadInput(f"device={device}: with parallel={parallel} each process has a GPU of its own; give device=cuda")


def device_of_rank(device: str) -> str:
    """This process's own, of a job's device."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and num_ranks() > 1 else device


def join(device: str) -> None:
    """Meet the other processes, once."""
    if num_ranks() > 1 and not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=LIMIT)
        messages()


@cache
def messages() -> dist.ProcessGroup:
    """What the processes tell each other by between videos, however long one waits there."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def part_of(parallel: str) -> Parallel:
    """This process's in a job's videos. Raises BadInput where processes have not met: nobody would take the others."""
    if parallel == "none":
        return ALONE
    if not dist.is_initialized():
        raise BadInput(f"parallel={parallel} is for run.py alone, started by torchrun; leave it out here")
    return Parallel.joined(parallel)
