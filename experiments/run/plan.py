"""What a job will take, told before it starts: compute and memory from shapes, time from three rows on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from rich.console import Console
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from eval.peak_memory import PeakBytes
from experiments.job.job import Job
from experiments.job.model import find_checkpoint
from experiments.job.units import counted, flops_text
from experiments.run import environment
from experiments.run.dry_run import count
from experiments.run.ranks import together
from experiments.show.kv_memory import kv_text
from flowcache.kv.policy import KvPolicy
from flowcache.method import VANILLA
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.schedule import Row, Schedule
from flowcache.trace import Trace

GIB, TERA = 2**30, 1e12
PROBED_ROWS = 3


@dataclass(frozen=True)
class Work:
    """One video of a job, from shapes.

    Attributes:
        flops: the method's; ``at_most`` where it decides by distances, which need weights.
        vanilla_flops: of a reference.
        kv_bytes_by_use: that the KV caches allocate (see experiments.records.record).
        kv_bytes_without_budget: the same of a whole cache.
        activation_bytes: most that a forward of the fullest rows holds besides weights and cache.
    """

    num_chunks: int
    num_rows: int
    num_chunk_steps: int
    flops: int
    at_most: bool
    vanilla_flops: int
    kv_bytes_by_use: dict[str, int]
    kv_bytes_without_budget: int
    activation_bytes: int


@dataclass(frozen=True)
class Probe:
    """What was timed on the device.

    Attributes:
        text_s: until the first row: text encoder, noise, caches.
        rows_s, num_rows, flops: of the probed rows together.
        decode_s: of one chunk.
    """

    text_s: float
    rows_s: float
    num_rows: int
    flops: int
    decode_s: float

    def video_s(self, flops: int, num_chunks: int) -> float:
        """Seconds of a video at the rows' rate."""
        return self.text_s + flops * self.rows_s / self.flops + num_chunks * self.decode_s


def count_work(job: Job, config: DictConfig) -> Work:
    """Raises BadInput for what the model refuses."""
    decisions = job.method.reuse.computed if isinstance(job.method.reuse, Replay) else None
    counted = count(config, job.method, decisions)
    vanilla = count(config, VANILLA)
    options = {key: value for key, value in config.model.on_meta.items() if key != "_target_"}
    model = get_object(config.model.on_meta["_target_"])(**options, checkpoint=find_checkpoint(config))
    generation = generation_of(job, model)
    schedule = generation.schedule
    return Work(
        schedule.num_chunks,
        len(schedule.rows),
        schedule.num_chunk_steps,
        counted.trace.flops,
        decisions is None and job.method.reuse.looks_at is not None,
        vanilla.trace.flops,
        counted.trace.kv_bytes_by_use,
        _whole_cache_bytes(model, job),
        activation_bytes(generation, job),
    )


def generation_of(job: Job, model: Any, prompt: str = "any prompt") -> Any:
    """The job's, of a method that measures nothing: its decisions are given. Raises what the model's does."""
    method = replace(job.method, reuse=Never())
    return model.generation(prompt, job.num_frames, method, job.seed, **job.generation_options)


def _whole_cache_bytes(model: Any, job: Job) -> int:
    """Of the job's method without a KV policy, of a model on device "meta"."""
    method = replace(job.method, reuse=Never(), kv=KvPolicy())
    generation = model.generation("any prompt", job.num_frames, method, job.seed, **job.generation_options)
    return generation.kv_bytes_allocated


def decode_bytes(model: Any, job: Job) -> int:
    """Most bytes that decoding one chunk holds besides the weights, from shapes; 0 without a VAE."""
    height, width = (job.generation_options[side] for side in ("height", "width"))
    decode = model.decoder_on_meta(height, width)
    if decode is None:
        return 0
    with torch.inference_mode(), FusedAttention(), PeakBytes() as memory:
        decode()
    return memory.peak


def activation_bytes(generation: Any, job: Job) -> int:
    """Most bytes of tensors alive in a forward of the fullest rows, of a generation on device "meta".

    Attention counts as fused, without its matrix of scores; what kernels need inside is not seen.
    """
    start, decisions = probed_rows(generation.schedule)
    compute, peak = generation.compute, 0

    def watched(row: Row, decision: Decision) -> Any:
        nonlocal peak
        if row.index < start:
            return compute(row, decision)
        with FusedAttention(), PeakBytes() as memory:
            work = compute(row, decision)
        peak = max(peak, memory.peak)
        return work

    generation.compute = watched
    _run_rows(generation, job, decisions, Trace())
    return peak


def probe_here(job: Job) -> Probe:
    """``probe`` of the job's own model, in each process that makes its videos."""
    return probe(job, job.load_model())


def probe(job: Job, model: Any) -> Probe:
    """Time three of the fullest rows; the rows before compute only where a chunk starts, so that this is soon there."""
    started = _now(job)
    generation = generation_of(job, model, job.prompts[0])
    text_s = _now(job) - started
    start, decisions = probed_rows(generation.schedule)
    trace, times = Trace(), [_now(job)]
    finished = _run_rows(generation, job, decisions, trace, lambda row, decision: times.append(_now(job)))
    first = max(start, min(1, len(times) - 2))  # without rows before, the first one warms up
    flops = sum(work.flops for row, work in trace.work if row >= first)
    chunk = generation.schedule.prefix_chunks
    with torch.inference_mode():
        latent = finished[chunk] if chunk in finished else generation.finish(chunk)
        started = _now(job)
        generation.decode(chunk, latent)
    return Probe(text_s, times[-1] - times[first], len(times) - 1 - first, flops, _now(job) - started)


def probed_rows(schedule: Schedule) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The first of the probed rows, and what is computed in every row up to the last of them."""
    most = max(len(row.steps) for row in schedule.rows)
    start = next(row.index for row in schedule.rows if len(row.steps) == most)
    end = min(start + PROBED_ROWS + (start == 0), len(schedule.rows))
    rows = schedule.rows[:end]
    return start, tuple(
        row.chunks if row.index >= start or any(step.step == 0 for step in row.steps) else () for row in rows
    )


class FusedAttention(TorchFunctionMode):
    """On device "meta", attention without the matrix of scores that torch would otherwise make there."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def print_plan(
    job: Job, config: DictConfig, model: Any, num_videos: int, num_references: int, console: Console
) -> None:
    """Count, print, probe, print: whether memory suffices can be read before a row is tried."""
    work, machine = count_work(job, config), environment.describe(job.device)
    weights = model.weights_bytes
    held = ", ".join(f"{name} {size / GIB:.3g}" for name, size in weights.items())
    at_most = "at most " if work.at_most else ""
    console.print(
        f"      a video: {counted(work.num_chunks, 'chunk')} in {counted(work.num_rows, 'row')}, "
        f"{counted(work.num_chunk_steps, 'chunk step')}; {at_most}{flops_text(work.flops)} "
        f"(vanilla {flops_text(work.vanilla_flops)})\n"
        f"      memory, GiB: weights {sum(weights.values()) / GIB:.3g} ({held}), "
        f"KV cache {kv_text(work.kv_bytes_by_use, GIB)}, activations about {work.activation_bytes / GIB:.3g}, "
        f"decoding about {decode_bytes(model, job) / GIB:.3g}; "
        f"{machine.get('gpu', machine['cpu'])} has {machine.get('gpu_memory_gib', machine['memory_gib'])}"
    )
    allocated = sum(work.kv_bytes_by_use.values())
    if job.method.kv.budget is not None and allocated >= work.kv_bytes_without_budget:
        console.print(
            f"      kv.budget={job.method.kv.budget} saves no memory here: the KV cache takes "
            f"{allocated / GIB:.3g} GiB with it and {work.kv_bytes_without_budget / GIB:.3g} without"
        )
    probed = together(job, probe_here)
    video_s, reference_s = (probed.video_s(flops, work.num_chunks) for flops in (work.flops, work.vanilla_flops))
    total = num_videos * video_s + num_references * reference_s
    console.print(
        f"      probe of {counted(probed.num_rows, 'row')}: {probed.rows_s / probed.num_rows:.3g} s a row, "
        f"{probed.flops / probed.rows_s / TERA:.3g} TFLOP/s; decoding {probed.decode_s:.3g} s a chunk\n"
        f"      estimated {at_most}{video_s:,.0f} s a video, {reference_s:,.0f} s a reference, "
        f"{at_most}{_hours(total)} in all"
    )


def _run_rows(generation: Any, job: Job, decisions: tuple, trace: Trace, observe: Callable | None = None) -> None:
    """The sampler up to the last probed row."""
    generation.schedule = replace(generation.schedule, rows=generation.schedule.rows[: len(decisions)])
    generation.method = replace(job.method, reuse=Replay(computed=decisions))
    return dict(sample(generation, trace, observe=observe))


def _now(job: Job) -> float:
    if torch.device(job.device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _hours(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"
