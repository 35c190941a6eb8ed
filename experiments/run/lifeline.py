"""Ending with another process, whatever ended that one.

A signal to one process reaches none of those that it started: without this they would go on making videos, and then
wait for more for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from threading import Thread

import psutil

_LOOK_EVERY_S = 1.0


def end_when_closed(line: Connection) -> None:
    """End this process at once, whatever it is at, when the other end of a pipe is closed or its only holder ends."""
    _end_after(lambda: line.poll(None))


@cache
def end_with(number: int) -> None:
    """End this process at once, whatever it is at, when the process of this number, of this machine, has ended."""

    def wait() -> None:
        try:
            process = psutil.Process(number)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # ended, which nobody has noticed
                time.sleep(_LOOK_EVERY_S)
        except psutil.NoSuchProcess:
            pass

    _end_after(wait)


def _end_after(wait: Callable[[], object]) -> None:
    def end() -> None:
        wait()
        os._exit(
            1
        )  # no cleaning up: locks go with the process, and an unfinished video is never taken for a finished one

    Thread(target=end, name="lifeline", daemon=True).start()
