"""Where a generation's time goes, without waiting for the device while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SectionClock:
    """Adds up seconds by section; a section within another one is taken out of it, so that no second counts twice. On
    CUDA it records events and reads them once, in ``seconds``.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.on_cuda = torch.device(device).type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, str | None, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: list[str] = []

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        around = self._open[-1] if self._open else None
        self._open.append(section)
        if self.on_cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
        else:
            started = time.perf_counter()
        try:
            yield
        finally:
            self._open.pop()
            if self.on_cuda:
                end.record()
                self._events.append((section, around, start, end))
            else:
                self._add(section, around, time.perf_counter() - started)

    def seconds(self) -> dict[str, float]:
        """Seconds of each section so far. Waits for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()
            for section, around, start, end in self._events:
                self._add(section, around, start.elapsed_time(end) / 1000)
            self._events.clear()
        return dict(self._seconds)

    def _add(self, section: str, around: str | None, seconds: float) -> None:
        self._seconds[section] += seconds
        if around is not None:
            self._seconds[around] -= seconds
