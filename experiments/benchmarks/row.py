"""Where a row's time goes: ``python -m experiments.bench row [key=value ...]``.

Times the parts of a generation, and rows by how many chunks they compute, after a warm-up, with medians and quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import replace

from torch.profiler import ProfilerActivity, profile

from eval.latency import Spread, sections
from experiments.job.job import Job
from experiments.job.units import counted, flops_text
from experiments.run.runner import Runner
from flowcache.reuse.base import Decision
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.schedule import Row

OPTIONS = ()
RUNS = 3


def run(job: Job) -> None:
    """Sections of whole generations, seconds a row by chunks computed, and the operators that take the time."""
    runner, prompt = Runner(job), job.prompts[0]
    runner.check(prompt)
    model, takes = runner.model, [runner.take(job.method, prompt) for _ in range(RUNS)]
    compute = flops_text(takes[0].trace.flops)
    print(f"{job.method_name} on {job.device}, {counted(job.threads, 'thread')}, {compute} a video")
    whole = Spread.of([take.latency_s for take in takes])
    for name, spread in {"whole": whole, **sections(takes)}.items():
        share, ends = spread.median / whole.median, f"{spread.low:.3f}-{spread.high:.3f}"
        print(f"  {name:12s} {spread.median:8.3f} s  {share:6.1%}   ({ends}, {RUNS} runs)")
    print("seconds a row by chunks computed (vanilla rows, the newest chunks computed):")
    for count, seconds in _row_seconds(job, model).items():
        low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        print(f"  {count}: {middle:7.2f} ms  ({low:.2f}-{high:.2f}), {middle / max(1, count):.2f} ms a chunk")
    generation = model.generation(job.prompts[0], job.num_frames, job.method, job.seed, **job.generation_options)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in sample(generation):
            pass
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=48))


def _row_seconds(job: Job, model: object) -> dict[int, list[float]]:
    """Times of rows with a full window, computing 0 to 4 of its chunks in turn."""
    options = (job.prompts[0], job.num_frames, job.method, job.seed)
    schedule = model.generation(*options, **job.generation_options).schedule
    decisions = []
    for row in schedule.rows:
        full = len(row.chunks) == schedule.window_size
        count = row.index % (schedule.window_size + 1) if full and row.steps[-1].step > 0 else len(row.chunks)
        decisions.append(row.chunks[len(row.chunks) - count :])

    method = replace(job.method, reuse=Replay(computed=decisions))
    seconds: dict[int, list[float]] = defaultdict(list)
    last = time.perf_counter()

    def observe(row: Row, decision: Decision) -> None:
        nonlocal last
        now = time.perf_counter()
        if len(row.chunks) == schedule.window_size and not row.finished:
            seconds[len(decision.compute)].append(now - last)
        last = now

    generation = model.generation(*options[:2], method, job.seed, **job.generation_options)
    for _ in sample(generation, observe=observe):
        pass
    return dict(sorted(seconds.items()))
