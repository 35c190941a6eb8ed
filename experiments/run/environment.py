"""The machine and software a figure was measured on, and how a process sets itself up to measure."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from experiments.job.job import Job
from experiments.job.paths import ROOT
from experiments.records.load import is_busy, told_load
from experiments.records.timings import way_of
from flowcache.kernels import FLASH_PACKAGES

_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "torchmetrics", "scikit-image", "av")
# What the same command, seed, machine and versions give again.
_DETERMINISTIC = {
    "cpu": "latents and files of videos to the byte; not times",
    "cuda": "initial noise; kernels of attention, matrix products and compiled blocks may round differently",
}
LOAD_AVERAGE_1MIN = round(psutil.getloadavg()[0], 2)  # as it is imported: a job's own work is not in it yet
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@cache
def _static() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.system() + " " + platform.machine(),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_1min": LOAD_AVERAGE_1MIN,
        "packages": {name: _version(name) for name in (*_PACKAGES, *FLASH_PACKAGES.values())},
        "revision": _revision(),
    }


def describe(device: str) -> dict[str, Any]:
    """Machine, its load before this process's own work, driver, threads, versions, code revision, and what is
    deterministic on it."""
    gpu = {}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    kind = torch.device(device).type
    own = {"device": kind, "threads": torch.get_num_threads(), "deterministic": _DETERMINISTIC.get(kind)}
    return {**_static(), **own, **gpu}


def way(job: Job) -> str:
    """The way that this machine times a job's videos; see ``experiments.records.timings``."""
    on_gpu = torch.device(job.device).type == "cuda" and torch.cuda.is_available()
    processor = {"gpu": torch.cuda.get_device_name(job.device)} if on_gpu else {"cpu": _cpu_name()}
    return way_of({"workers": job.workers, "threads": job.threads, **processor})


def told_busy() -> str | None:
    """A line on a machine that others keep busier than it has cores; None for one that they do not."""
    machine = _static()
    if not is_busy(machine):
        return None
    return f"the machine is busy ({told_load([machine])}): times taken now are too long, and marked"


def prepare(threads: int) -> None:
    """Set this process's CPU threads, and keep freed memory for the next operator.

    glibc hands large blocks back to the kernel as they are freed, and every operator then faults its output in afresh:
    a tenth of a small model's time.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        largest = 2**31 - 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 64 * 2**20)):
            libc.mallopt(option, value)


def _version(package: str) -> str | None:
    """None where it is not installed: some are a GPU's, and a benchmark needs fewer than a run."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _revision() -> str | None:
    """Of the repository, with a plus sign if files differ from it; None outside a checkout."""
    commands = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        head, changed = (
            subprocess.run(c, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
