"""(c), (d), (f) Whole videos, with random weights and a schedule of the published compute; (g) a long one."""

from __future__ import annotations

from typing import Any

import torch

from eval.latency import take
from experiments.benchmarks.gpu.subject import Followed, Subject, inputs, wait
from experiments.job.job import Job
from experiments.studies.paper_flops import vanilla_like
from flowcache.clock import SectionClock
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.reuse.base import Decision
from flowcache.sampler import generate, sample
from flowcache.trace import Trace

GIB = 2**30
WARMUP_STEPS = 4
SAMPLED_EVERY = 8


def video(subject: Subject, name: str, *overrides: str) -> dict[str, Any]:
    """One video by a method, after a short one that is not timed."""
    job, method = subject.job(), subject.method(name, *overrides)
    model = job.load_model()
    warm_up(job, model, method)
    taken = take(model, num_frames=job.num_frames, method=method, device=job.device, **inputs(job))
    trace = taken.trace
    return {
        "method": name,
        "num_frames": job.num_frames,
        "num_steps": job.generation_options["num_steps"],
        "latency_s": taken.latency_s,
        "chunk_latency_s": taken.chunk_latency_s,
        "sections_s": taken.sections_s,
        "flops": trace.flops,
        "chunk_steps_computed": trace.computed_fraction,
        "kv_bytes_allocated": trace.kv_bytes_allocated,
        "kv_bytes_used_peak": trace.kv_bytes_used_peak,
        "peak_memory_gib": taken.peak_memory_gib,
        "runs": 1,
    }


@torch.inference_mode()
def sampled_video(subject: Subject, name: str, every: int = SAMPLED_EVERY) -> dict[str, Any]:
    """An estimate of the rows' time from some of them: each in which a chunk starts or ends, and every eighth.

    The others' time is taken to be what their FLOPs take at the rate of these. Distances, text and VAE are left out.
    """
    job, method, flops = subject.job(), subject.method(name), subject.counted(name).flops
    model = job.load_model()
    warm_up(job, model, method)
    decisions = method.reuse.computed if isinstance(method.reuse, Followed) else None
    generation = model.generation(num_frames=job.num_frames, method=method, **inputs(job))
    generation.start(SectionClock("cpu"))
    rows, work = generation.schedule.rows, []
    run = [row for row in rows if row.index % every == 0 or row.finished or any(s.step == 0 for s in row.steps)]
    started = wait(job.device)
    for row in run:
        decision = Decision(row.chunks if decisions is None else decisions[row.index])
        generation.begin_row(row)
        work += generation.compute(row, decision)
        generation.advance(row, decision)
        for chunk in row.finished:
            generation.finish(chunk)
    seconds, flops_run = wait(job.device) - started, sum(item.flops for item in work)
    return {
        "method": name,
        "num_steps": job.generation_options["num_steps"],
        "rows": len(rows),
        "rows_run": len(run),
        "flops": flops,
        "flops_run": flops_run,
        "run_s": seconds,
        "rows_s_estimated": seconds * flops / flops_run,
    }


def long_video(subject: Subject, kv_budget: str = "1 chunk") -> dict[str, Any]:
    """Chunk by chunk, seconds and bytes of a video of which the KV cache keeps a fixed part. Frames are let go of."""
    job, method = subject.job(), Method(kv=KvPolicy(select=Joint(), budget=kv_budget))
    model, on_gpu = job.load_model(), torch.device(job.device).type == "cuda"
    warm_up(job, model, method)
    trace, clock = Trace(), SectionClock(job.device)
    seconds, used, memory = [], [], []
    last = wait(job.device)
    for _ in generate(model, num_frames=job.num_frames, method=method, trace=trace, clock=clock, **inputs(job)):
        now = wait(job.device)
        seconds.append(now - last)
        used.append(trace.kv_bytes_used_peak)
        if on_gpu:
            memory.append(torch.cuda.max_memory_allocated(job.device) / GIB)
            torch.cuda.reset_peak_memory_stats(job.device)
        last = wait(job.device)
    return {
        "kv_budget": kv_budget,
        "num_frames": job.num_frames,
        **{key: job.generation_options[key] for key in ("num_steps", "height", "width")},
        "chunk_s": seconds,
        "sections_s": clock.seconds(),
        "flops": trace.flops,
        "kv_bytes_allocated": trace.kv_bytes_allocated,
        "kv_bytes_peak_so_far": used,
        "peak_memory_gib": memory,
    }


def warm_up(job: Job, model: Any, method: Method) -> None:
    """What is worked out once, not timed: a chunk in a few steps, decoded, and all the video's shapes by one layer."""
    short, computes = inputs(job, num_steps=WARMUP_STEPS), vanilla_like(method)
    take(model, num_frames=model.frames_of(1), method=computes, device=job.device, **short)
    generation = model.generation(num_frames=job.num_frames, method=computes, **inputs(job))
    with model.one_layer():
        for _ in sample(generation):
            pass
