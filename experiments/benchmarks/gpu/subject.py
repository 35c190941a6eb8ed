"""What is measured: a model of random weights at one setting, the methods that run on it, and how a call is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from omegaconf import DictConfig

from eval.latency import Spread
from experiments.benchmarks.gpu.schedules import Counted, counted
from experiments.job.cli import compose_config
from experiments.job.job import Job, make_job
from experiments.job.method import make_method
from flowcache.method import Method
from flowcache.reuse.replay import Replay

RUNS = 5


@dataclass(kw_only=True)
class Followed(Replay):
    """Given decisions, with the distance measured that a policy would decide by: its time, without its weights."""

    distance: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model of random weights at one setting.

    Attributes:
        overrides: of the configuration; the model and the setting among them.
    """

    overrides: tuple[str, ...]

    def job(self) -> Job:
        return make_job(self.config("method=vanilla"))

    def config(self, *overrides: str) -> DictConfig:
        return compose_config([*self.overrides, "weights=random", *overrides])

    def method(self, name: str, *overrides: str) -> Method:
        """A method by name. One that decides by distances follows the schedule of the published compute."""
        method = make_method(self.config(f"method={name}", *overrides))
        if method.reuse.looks_at is None:
            return method
        computed = self.counted(name, *overrides).computed
        return replace(method, reuse=Followed(computed=computed, distance=method.reuse.distance))

    def counted(self, name: str, *overrides: str) -> Counted:
        """The compute of a video by a method, and the schedule that it follows."""
        return counted(self.overrides, name, overrides)


def inputs(job: Job, **options: Any) -> dict[str, Any]:
    """What ``generation`` takes beyond frames and method, some of it exchanged."""
    return {"prompt": job.prompts[0], "seed": job.seed, **job.generation_options, **options}


def timed(call: Callable[[], object], device: str, runs: int = RUNS) -> Spread:
    """Seconds of a call on a device, after one that is not timed."""
    call()
    if torch.device(device).type != "cuda":
        return Spread.of([_wall(call) for _ in range(runs)])
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return Spread.of([start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)])


def wait(device: str) -> float:
    """The time, once a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _wall(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
