"""Where a generation's time goes, without waiting for the device while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SectionClock:
    """Adds up seconds by section. On CUDA it records events and reads them once, in ``seconds``.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.on_cuda = torch.device(device).type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        if self.on_cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((section, start, end))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[section] += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Seconds of each section so far. Waits for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()
            for section, start, end in self._events:
                self._seconds[section] += start.elapsed_time(end) / 1000
            self._events.clear()
        return dict(self._seconds)
