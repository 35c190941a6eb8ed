"""MagCache's table of a model: ratios of its outputs' magnitude from step to step, over chunks and prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from baselines.magcache import MagCache
from baselines.magnitudes import Magnitudes
from experiments.job.job import Job
from experiments.run.model_pool import Map
from experiments.studies.provenance import made_for
from experiments.studies.trials import whole_run
from flowcache.reuse.base import Decision
from flowcache.reuse.plan import chunk_times
from flowcache.schedule import Row, Schedule

DIGITS = 6


def norms(output: Tensor) -> Tensor:
    """Of every token over its channels, float64 and flat: of latents [1, C, b, h, w], or of hidden tokens [..., D]."""
    return torch.linalg.vector_norm(output.double(), dim=1 if output.ndim == 5 else -1).flatten()


class NormRecorder:
    """Called after every row of a vanilla run.

    Attributes:
        ratios: by chunk, of every step from its second on, of every guidance branch that forecasts by itself: the mean
            over tokens of the norm over that in the step before.
    """

    def __init__(self, generation: Any) -> None:
        self._generation = generation
        self._before: dict[int, list[Tensor]] = {}
        self.ratios: dict[int, list[list[Tensor]]] = {}

    def __call__(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            now = [norms(output) for output in self._generation.outputs(step.chunk)]
            if step.step > 0:
                pairs = zip(now, self._before[step.chunk], strict=True)
                found = [(after / before.clamp_min(1e-30)).mean() for after, before in pairs]
                self.ratios.setdefault(step.chunk, []).append(found)
            self._before[step.chunk] = now
        for chunk in row.finished:
            self._before.pop(chunk)


@dataclass(frozen=True)
class Measured:
    """Of one prompt: ratios [chunks, branches, N - 1], of chunks that take the grid's steps; and the schedule."""

    prompt: str
    ratios: ndarray
    schedule: Schedule


def measured(job: Job, model: Any, prompt: str) -> Measured:
    """A run that computes everything, of which nothing but the ratios is kept; for experiments.run.model_pool."""
    recorder, schedule = whole_run(job, model, prompt, NormRecorder)
    times = grid(schedule)
    alike = [chunk for chunk in recorder.ratios if chunk_times(schedule, chunk) == times]
    ratios = [[[float(each) for each in own] for own in recorder.ratios[chunk]] for chunk in alike]
    return Measured(prompt, np.array(ratios).swapaxes(1, 2), schedule)


def grid(schedule: Schedule) -> list[float]:
    """Times of the last chunk, which are all chunks' but for a first one's of its own."""
    return chunk_times(schedule, schedule.windows[-1].generated[-1])


def calibrate_magnitudes(job: Job, map_model: Map) -> dict[str, Any]:
    """The table file's content. Prints what it finds."""
    runs: list[Measured] = []
    for run in map_model(measured, job.prompts):
        runs.append(run)
        print(f"vanilla {len(runs)}: {run.prompt}", flush=True)
    every = np.concatenate([run.ratios for run in runs])
    mean, spread = every.mean(axis=0), every.std(axis=0)
    schedule = runs[0].schedule
    made = {
        "part": "magcache",
        **made_for(job),
        "forecast": job.method.described()["forecast"],
        "times": grid(schedule)[:-1],
        "ratios": [[round(float(ratio), DIGITS) for ratio in own] for own in mean],
        "fit": {"spread": [round(float(own.mean()), DIGITS) for own in spread], "chunks": len(every)},
    }
    for branch, (own, apart) in enumerate(zip(mean, spread, strict=True)):
        print(
            f"branch {branch}: ratios {own.min():.4f} to {own.max():.4f}, over {len(every)} chunks "
            f"{apart.mean():.4f} apart (standard deviation, mean over steps)"
        )
    print(f"{_named(job.method.reuse)}: {left(job.method.reuse, made, schedule):.3f} of chunk steps left")
    return made


def left(policy: MagCache, made: dict[str, Any], schedule: Schedule) -> float:
    """Share of chunk steps that a policy computes by a table, in its first branch: its decisions need no video."""
    table = Magnitudes(name="", sha256="", provenance={}, **Magnitudes.taken(dict(made)))
    together = len(table.ratios) == 1 and policy.branches == "apart"
    own = replace(policy, table=table, branches="together" if together else policy.branches)
    return sum(len(own.decide(row, {}, schedule).compute) for row in schedule.rows) / schedule.num_chunk_steps


def _named(policy: MagCache) -> str:
    own = {name: getattr(policy, name) for name in ("threshold", "most_skips", "retention")}
    return " ".join(f"reuse.{name}={value:g}" for name, value in own.items())
