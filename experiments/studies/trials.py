"""Runs that a calibration asks for: vanilla's, with all of its outputs, and those of plans that are tried.

Each is a function of a job, its model and a task, for experiments.run.model_pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from numpy import ndarray
from torch import Tensor

from eval.latent_error import latent_snr_db
from experiments.job.job import Job
from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.sampler import Observer, sample
from flowcache.schedule import Row, Schedule
from flowcache.trace import Trace

Observed = TypeVar("Observed", bound=Observer)


class Recorder:
    """Called after every row of a vanilla run: keeps each chunk's outputs until it is finished, then their Gram matrix.

    Attributes:
        grams: by chunk, float64 [N, N]: inner products of its outputs over their number of elements.
    """

    def __init__(self, generation: Any) -> None:
        self._generation, self._outputs = generation, {}
        self.grams: dict[int, ndarray] = {}

    def __call__(self, row: Row, decision: Decision) -> None:
        for chunk in row.chunks:
            self._outputs.setdefault(chunk, []).append(self._generation.output(chunk).flatten())
        for chunk in row.finished:
            outputs = torch.stack(self._outputs.pop(chunk)).double()
            self.grams[chunk] = (outputs @ outputs.T / outputs.shape[1]).cpu().numpy()


@dataclass(frozen=True)
class Vanilla:
    """One prompt's run that computed everything: its latents by chunk, Gram matrices, FLOPs and schedule."""

    prompt: str
    latents: Tensor
    grams: dict[int, ndarray]
    trace: Trace
    schedule: Schedule


def vanilla(job: Job, model: Any, prompt: str) -> Vanilla:
    """A run that computes everything, through the cache, and the outputs that the job's forecast is of."""
    generation, recorder, trace = _whole(job, model, prompt, Recorder)
    latents = torch.stack([latent for _, latent in sample(generation, trace, observe=recorder)])
    return Vanilla(prompt, latents.cpu(), recorder.grams, trace, generation.schedule)


def whole_run(job: Job, model: Any, prompt: str, record: Callable[[Any], Observed]) -> tuple[Observed, Schedule]:
    """Such a run for what an observer of its rows makes of it; ``record`` makes one of a generation."""
    generation, recorder, trace = _whole(job, model, prompt, record)
    for _ in sample(generation, trace, observe=recorder):
        pass
    return recorder, generation.schedule


def _whole(job: Job, model: Any, prompt: str, record: Callable[[Any], Observed]) -> tuple[Any, Observed, Trace]:
    forecast = job.method.forecast
    probed = Hold(quantity=forecast.quantity, correction=forecast.correction)
    generation = _generation(job, model, prompt, replace(job.method, reuse=Never(), forecast=probed))
    return generation, record(generation), Trace()


def tried(job: Job, model: Any, task: tuple[Method, Vanilla]) -> tuple[float, float]:
    """A method's video of a prompt against vanilla's: dB of its latents, and its share of the FLOPs."""
    method, reference = task
    trace = Trace()
    latents = [latent for _, latent in sample(_generation(job, model, reference.prompt, method), trace)]
    return latent_snr_db(torch.stack(latents).cpu(), reference.latents), trace.flops / reference.trace.flops


def _generation(job: Job, model: Any, prompt: str, method: Method) -> Any:
    return model.generation(prompt, job.num_frames, method, job.seed, **job.generation_options)
