"""One video in several processes: the first one runs the job, and the others do with it what takes all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import distributed as dist

from eval.latency import Take, take
from experiments.job.errors import BadInput, RanksFailed, explain
from experiments.job.job import Job
from experiments.job.process import leads
from experiments.job.ranks import join, messages, rank
from experiments.run import environment
from flowcache.method import Method

Result = TypeVar("Result")


def together(job: Job, order: Callable[[Job], Result]) -> Result:
    """What a function gives here, of the job of each process that runs it: all of them, where the job is shared out.

    Raises RanksFailed where it fails here, or another process has ended: the others are not where this one is any more,
    so that nothing can go on.
    """
    if job.parallel == "none":
        return order(job)
    try:
        _send(order)
        return order(job)
    except BadInput:
        raise
    except Exception as error:
        raise RanksFailed(f"rank {rank()} of parallel={job.parallel}: {explain(error)}") from error


def follow(job: Job) -> None:
    """Do what the first process does by ``together``, until it is done. Raises RanksFailed."""
    environment.prepare(job.threads)
    while (order := _receive()) is not None:
        try:
            order(job)
        except Exception as error:
            raise RanksFailed(f"rank {rank()} of parallel={job.parallel}: {explain(error)}") from error


def dismiss(job: Job) -> None:
    """Let the others end; where one has failed they are gone."""
    if job.parallel != "none":
        with suppress(RuntimeError):
            _send(None)


def meet(job: Job) -> bool:
    """Meet the other processes of a job; whether this one leads them."""
    join(job.device)
    return leads()


def timed(job: Job, method: Method, prompt: str, num_frames: int, keep_latents: bool) -> Take:
    """``eval.latency.take`` of a job's method and setting; in several processes with the times of the slowest."""
    order = partial(_take, method=method, prompt=prompt, num_frames=num_frames, keep_latents=keep_latents)
    return together(job, order)


def _take(job: Job, method: Method, prompt: str, num_frames: int, keep_latents: bool) -> Take:
    model, options = job.load_model(), job.generation_options
    if job.parallel != "none":
        dist.barrier(messages())  # none begins to count while others load
    taken = take(model, prompt, num_frames, method, job.seed, job.device, keep_latents, **options)
    return taken if job.parallel == "none" else slowest(taken)


def slowest(taken: Take) -> Take:
    """This process's video, with each chunk's time of the process that had it last, and the most memory of any."""
    figures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(figures, (taken.chunk_latency_s, taken.peak_memory_gib), group=messages())
    chunks = [max(times) for times in zip(*(latencies for latencies, _ in figures), strict=True)]
    peaks = [peak for _, peak in figures if peak is not None]
    return replace(taken, chunk_latency_s=chunks, peak_memory_gib=max(peaks) if peaks else None)


def _send(order: Callable[[Job], Any] | None) -> None:
    dist.broadcast_object_list([order], src=0, group=messages())


def _receive() -> Callable[[Job], Any] | None:
    orders: list[Any] = [None]
    try:
        dist.broadcast_object_list(orders, src=0, group=messages())
    except RuntimeError:  # the first process has ended and said why
        raise SystemExit(1) from None
    return orders[0]
