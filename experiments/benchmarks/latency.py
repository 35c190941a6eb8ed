"""Latency of a method against its baseline, timed in turn in one process: where the time goes, memory, speed-up.

``python -m experiments.bench latency [latency_repeats=6] [model=magi] [method=flowcache_fast] [key=value ...]``

On the job's first prompt. Every method first makes a short video that is not timed; then the baseline (vanilla, or
``baseline=vanilla_kv``) and the method take turns. The speed-up is also told without text and decoding, which no method
shortens. ``latency_first_chunk_s`` is from the prompt to the first chunk's decoded frames, ``fps`` the video's frames
over the whole. On a CPU, memory is what tensors take at once, counted in a further run of each that is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from eval.latency import GIB, Spread, Take, sections
from eval.peak_memory import PeakBytes
from eval.speedup import speedup
from experiments.benchmarks.options import whole_number
from experiments.job.job import Job
from experiments.job.units import counted, flops_text
from experiments.run import environment
from experiments.run.runner import Runner
from experiments.show.kv_memory import KV_USES
from flowcache.method import Method

OPTIONS = ("latency_repeats",)
NEVER_SHORTER = ("text", "vae")  # sections
_MIB = 2**20


def run(job: Job, latency_repeats: str = "6") -> None:
    """Print a column for the baseline and one for the method, and the ratio of both."""
    repeats, runner, prompt = whole_number("latency_repeats", latency_repeats), Runner(job), job.prompts[0]
    runner.check(prompt)
    methods = {job.baseline: job.baseline_method, job.method_name: job.method}
    takes: dict[str, list[Take]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            take = runner.take(method, prompt)
            takes[name].append(replace(take, frames=take.frames[:0]))
    print(
        f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames, {prompt!r}\n"
        f"{_machine(job)}\n"
        f"seconds: median (fastest-slowest) of {repeats}, {' and '.join(methods)} in turn, after a warm-up each"
    )
    columns = [_column(job, runner, methods[name], taken) for name, taken in takes.items()]
    print(" " * 22 + "".join(f"{name:>34}" for name in methods))
    for title in dict.fromkeys(title for column in columns for title in column):
        print(f"{title:22}" + "".join(f"{column.get(title, '-'):>34}" for column in columns))
    if len(methods) == 2:
        timed, base = takes[job.method_name], takes[job.baseline]
        print(_against(timed, base, [take.latency_s for take in timed], [take.latency_s for take in base]))
        print("without text and decoding: " + _against(timed, base, rest_s(timed), rest_s(base)))


def _column(job: Job, runner: Runner, method: Method, takes: Sequence[Take]) -> dict[str, str]:
    """What is said of one method, by title."""
    whole, trace = Spread.of([take.latency_s for take in takes]), takes[0].trace
    column = {"whole": _cell(whole, whole)}
    column |= {f"  {name}": _cell(spread, whole) for name, spread in sections(takes).items()}
    column["latency_first_chunk_s"] = _cell(Spread.of([take.chunk_latency_s[0] for take in takes]), whole)
    fps = Spread.of([job.num_frames / take.latency_s for take in takes])
    column["fps"] = f"{fps.median:.2f} ({fps.low:.2f}-{fps.high:.2f})"
    if takes[0].peak_memory_gib is None:
        with PeakBytes() as memory:
            runner.take(method, job.prompts[0])
        column["peak of tensors, GiB"] = f"{memory.peak / GIB:.3f} without weights"
    else:
        column["peak memory, GiB"] = f"{max(take.peak_memory_gib for take in takes):.3f} with weights"
    used, allocated = trace.kv_bytes_used_peak / _MIB, trace.kv_bytes_allocated / _MIB
    column["KV cache, MiB"] = f"{used:.2f} of {allocated:.2f} in use"
    if trace.kv_bytes_by_use.keys() > {"entries"}:
        column |= {f"  {name}": f"{trace.kv_bytes_by_use.get(use, 0) / _MIB:.2f}" for use, name in KV_USES.items()}
    column["executed"] = flops_text(trace.flops)
    return column


def _cell(spread: Spread, whole: Spread) -> str:
    ends = f"({spread.low:.3f}-{spread.high:.3f})"
    return f"{spread.median:.3f} {ends} {spread.median / whole.median:6.1%}"


def rest_s(takes: Sequence[Take]) -> list[float]:
    """Seconds of each but those that every method has alike."""
    return [take.latency_s - sum(take.sections_s.get(name, 0.0) for name in NEVER_SHORTER) for take in takes]


def _against(takes: Sequence[Take], base: Sequence[Take], seconds: list[float], base_seconds: list[float]) -> str:
    left = [take.trace.flops / other.trace.flops for take, other in zip(takes, base, strict=True)]
    gain = speedup(seconds, base_seconds, left)
    interval = "" if math.isnan(gain.low) else f"95 % {gain.low:.3f}-{gain.high:.3f}, "
    return (
        f"speed-up {gain.median:.3f}x ({interval}{counted(gain.pairs, 'pair')}), FLOP ratio {1 / left[0]:.3f}x, "
        f"efficiency {gain.efficiency[0]:.3f} (speed-up over FLOP ratio)"
    )


def _machine(job: Job) -> str:
    machine = environment.describe(job.device)
    busy = environment.told_busy()
    gpu = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {counted(machine['threads'], 'thread')}; "
        f"Python {machine['python']}, torch {machine['packages']['torch']}, revision {machine['revision']}"
        + (f"\n{busy}" if busy else "")
    )
