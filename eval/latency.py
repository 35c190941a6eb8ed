"""How long a generation takes, where the time goes and what memory it takes: the one way to time, and what repeats say.

A figure needs takes after a warm-up, several of them, and for a speed-up as many of the baseline in turn with them, by
the same program on the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.statistics import median_and_interval
from flowcache.clock import SectionClock
from flowcache.method import Method
from flowcache.models.base import VideoModel
from flowcache.sampler import generate
from flowcache.trace import Trace

GIB = 2**30


@dataclass(frozen=True)
class Take:
    """One timed generation.

    Attributes:
        frames: uint8 [F, H, W, 3].
        chunk_latency_s: wall seconds from the prompt to the decoded frames of the first, second ... chunk.
        sections_s: where they went: text, transformer, policy, compression, scheduler, vae.
        trace: what happened.
        peak_memory_gib: most that the GPU's allocator gave out at once, weights included; None on a CPU.
    """

    frames: np.ndarray
    chunk_latency_s: list[float]
    sections_s: dict[str, float]
    trace: Trace
    peak_memory_gib: float | None = None

    @property
    def latency_s(self) -> float:
        """From the prompt to the last decoded frame."""
        return self.chunk_latency_s[-1]


def take(
    model: VideoModel,
    prompt: str,
    num_frames: int,
    method: Method,
    seed: int,
    device: torch.device | str,
    **options: Any,
) -> Take:
    """Generate once, timed; the device is waited for at the start and at every chunk. See ``flowcache.generate``."""
    on_gpu = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    trace, clock = Trace(), SectionClock(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    wait()
    started = time.perf_counter()
    chunks, chunk_latency_s = [], []
    for frames in generate(model, prompt, num_frames, method, seed, trace, clock, **options):
        wait()
        chunks.append(frames)
        chunk_latency_s.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None
    return Take(torch.cat(chunks).cpu().numpy(), chunk_latency_s, clock.seconds(), trace, peak)


@dataclass(frozen=True)
class Spread:
    """Median of repeats, and the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def sections(takes: Sequence[Take]) -> dict[str, Spread]:
    """Seconds of every section, the longest first, and of what is in none ("other")."""
    names = {name for t in takes for name in t.sections_s}
    seconds = {name: Spread.of([t.sections_s.get(name, 0.0) for t in takes]) for name in names}
    seconds["other"] = Spread.of([t.latency_s - sum(t.sections_s.values()) for t in takes])
    return dict(sorted(seconds.items(), key=lambda item: -item[1].median))


@dataclass(frozen=True)
class Speedup:
    """Of a method over a baseline that was timed in turn with it.

    Attributes:
        median, low, high: of the pairs' ratios of seconds, and its 95 % bootstrap interval (nan for few pairs, see
            ``eval.statistics``).
        pairs: how many there are.
        efficiency: median of speed-up times compute left (1 where every FLOP saved became time saved), and the ends of
            its interval.
    """

    median: float
    low: float
    high: float
    pairs: int
    efficiency: tuple[float, float, float]


def speedup(latency_s: Sequence[float], baseline_latency_s: Sequence[float], compute_left: Sequence[float]) -> Speedup:
    """Pairs of seconds, and each pair's share of the baseline's FLOPs that the method executed.

    Raises:
        ValueError: they are not as many, or none.
    """
    if not len(latency_s) == len(baseline_latency_s) == len(compute_left) > 0:
        raise ValueError(
            f"a speed-up needs pairs, got {len(latency_s)} latencies, {len(baseline_latency_s)} of the baseline and "
            f"{len(compute_left)} shares of compute"
        )
    ratios = [before / after for before, after in zip(baseline_latency_s, latency_s, strict=True)]
    efficiency = [ratio * left for ratio, left in zip(ratios, compute_left, strict=True)]
    return Speedup(*median_and_interval(ratios), len(ratios), median_and_interval(efficiency))
