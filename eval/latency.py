"""How long a generation takes, where the time goes and what memory it takes: the one way to time, and what repeats say.

A figure needs takes after a warm-up, several of them, and for a speed-up (``eval.speedup``) as many of the baseline in
turn with them, by the same program on the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
        latents: float32 [C, F, h, w] of all chunks, on the CPU; None unless they were asked for.
    """

    frames: np.ndarray
    chunk_latency_s: list[float]
    sections_s: dict[str, float]
    trace: Trace
    peak_memory_gib: float | None = None
    latents: torch.Tensor | None = None

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
    keep_latents: bool = False,
    **options: Any,
) -> Take:
    """Generate once, timed; the device is waited for at the start and at every chunk. See ``flowcache.generate``.

    What keeping latents takes, beyond their memory, is after the time is taken.
    """
    on_gpu = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    trace, clock = Trace(), SectionClock(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    wait()
    started = time.perf_counter()
    chunks, chunk_latency_s = [], []
    latents: list[torch.Tensor] | None = [] if keep_latents else None
    for frames in generate(model, prompt, num_frames, method, seed, trace, clock, latents, **options):
        wait()
        chunks.append(frames)
        chunk_latency_s.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None
    whole = torch.cat(latents, dim=1).float().cpu() if latents else None
    return Take(torch.cat(chunks).cpu().numpy(), chunk_latency_s, clock.seconds(), trace, peak, whole)


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
