"""What every process that a user starts sets for itself first. Imports nothing slow."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType


def set_up() -> None:
    """Make waiting threads sleep, let the system's request to end do what Ctrl-C does, and print warnings as a line.

    OpenMP's threads wait for each other by keeping their cores busy. Where other programs need those, a small model
    takes up to a hundred times as long. Counts for processes started from here, and here if torch is not yet imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _stop)
    warnings.showwarning = _show


def leads() -> bool:
    """Whether this process is the one that prints, keeps records and measures, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _show(message: Warning | str, *where: object) -> None:
    """Without the place in the code, which tells its user nothing."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
