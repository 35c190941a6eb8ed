"""One layer of MAGI-1 4.5B, and how long things take in it: what the parts of ``bench kv`` share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NUM_LAYERS, NUM_HEADS, NUM_GROUPS, CHANNELS = 34, 24, 8, 128
CHUNKS, FRAMES_PER_CHUNK = 4, 6
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """A cache of ``length`` clean keys, of which the budget holds all chunks but one."""

    length: int

    @property
    def chunk(self) -> int:
        return self.length // CHUNKS

    @property
    def frame(self) -> int:
        return self.chunk // FRAMES_PER_CHUNK

    @property
    def budget(self) -> int:
        return self.length - self.chunk


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of a call, the device waited for."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def cell(seconds: list[float], peak: int) -> str:
    """Median and range of seconds, and bytes at the peak."""
    return f"{statistics.median(seconds):.4f} s ({min(seconds):.4f}-{max(seconds):.4f}), {peak / MIB:.0f} MiB"
