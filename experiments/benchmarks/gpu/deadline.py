"""An end that is kept: what runs at a deadline is broken off there."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESERVE_S = 8.0  # for what is written at the end, and for ending


class OutOfTime(BaseException):
    """The deadline came; no ``except Exception`` keeps it back."""


@contextmanager
def broken_off_at(ends: float | None) -> Iterator[None]:
    """Raise OutOfTime within the block at a time (as ``time.time()`` tells it), as soon as Python gets a turn; never,
    if None. In the main thread alone.
    """
    if ends is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, _break_off)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, ends - time.time()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _break_off(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
