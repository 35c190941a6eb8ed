"""Processes that know each other by gloo, as torchrun starts them: what each gives back, or why one of them failed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

Work = Callable[[int], Any]
ROUNDING = "tests.rounding"  # a plugin of this process, which its numbers are compared under, goes with it
LIMIT_S = 400  # on a machine that others keep busy; two free cores take under a minute


def together(work: Work, world: int, folder: Path) -> list[Any]:
    """What a function of a module gives of each rank. Raises RuntimeError, with what was printed, once one fails; and
    ends all of them by then."""
    # Forked from one process that has made the slow imports, and is not this one, with its threads and its plugins.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusers", "transformers", work.__module__])
    plugin = ROUNDING in sys.modules
    arguments = [(work, rank, world, folder, plugin, dict(os.environ)) for rank in range(world)]
    started = [context.Process(target=_run, args=each, daemon=True) for each in arguments]
    for process in started:
        process.start()
    end = time.monotonic() + LIMIT_S
    try:
        while any(process.exitcode is None for process in started):
            if any(process.exitcode for process in started) or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
    if any(code != 0 for code in codes):
        told = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.failed"))]
        raise RuntimeError(f"exit codes {codes}: " + "\n".join(told))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _run(work: Work, rank: int, world: int, folder: Path, plugin: bool, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # the forking process has that of when it began
    torch.set_num_threads(1)
    if plugin:
        importlib.import_module(ROUNDING)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT_S))
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    except Exception:
        (folder / f"{rank}.failed").write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None
    dist.destroy_process_group()
