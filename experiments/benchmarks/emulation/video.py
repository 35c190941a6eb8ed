"""A whole video on the emulated device: what one run of a job asks of a GPU."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_object

from experiments.benchmarks.emulation.device import EmulatedCuda, Read, zeros
from experiments.benchmarks.emulation.operators import OUTSIDE, OperatorLog
from experiments.job.job import Job
from flowcache.method import Method
from flowcache.sampler import IdlePart, sample
from flowcache.schedule import Row
from flowcache.trace import Trace


@dataclass(frozen=True)
class Emulated:
    """One video.

    Attributes:
        log: of all that was asked of the device.
        trace: as of any run.
        num_rows, num_chunks: of the schedule.
        weights_bytes: of every network, by its name.
        peak_bytes: most that tensors took on the device at once, weights and KV caches included.
    """

    log: OperatorLog
    trace: Trace
    num_rows: int
    num_chunks: int
    weights_bytes: dict[str, int]
    peak_bytes: int


def emulate(
    job: Job, method: Method, num_layers: int | None = None, read: Read = zeros, decodes: bool = True
) -> Emulated:
    """Make a job's video by a method, with random weights.

    Args:
        job: on a CUDA device; of ``weights=random``.
        num_layers: the first so many of the transformer's; None is all.
        read: gives the numbers that the host reads.
        decodes: whether latents are decoded to frames.
    """
    sizes = {**job.random_weights, **({} if num_layers is None else {"num_layers": num_layers})}
    load = get_object(job.loader)
    with EmulatedCuda(read).running() as device:
        model = load(**sizes, checkpoint=job.checkpoint, device=job.device)
        model.set_kernels(job.attention_backend)
        options = job.generation_options
        generation = model.generation(job.prompts[0], job.num_frames, method, job.seed, **options)
        _tell_rows(generation, device)
        trace = Trace()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IdlePart)
            for chunk, latent in sample(generation, trace, device.clock):
                if decodes:
                    with device.clock("vae"), torch.inference_mode():
                        generation.decode(chunk, latent)
                if chunk == generation.schedule.num_chunks - 1:
                    device.begin_row(OUTSIDE)
    schedule = generation.schedule
    return Emulated(device.log, trace, len(schedule.rows), schedule.num_chunks, model.weights_bytes, device.memory.peak)


def _tell_rows(generation: Any, device: EmulatedCuda) -> None:
    """Have the device told of every row that begins."""
    begin = generation.begin_row

    def begin_row(row: Row) -> None:
        device.begin_row(row.index)
        begin(row)

    generation.begin_row = begin_row
