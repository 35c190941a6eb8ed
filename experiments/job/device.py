"""Devices by name, and how much of this machine a job takes by itself."""

from __future__ import annotations

import os

import torch

from experiments.job.errors import BadInput
from experiments.job.units import counted
from flowcache.kernels import FLASH_PACKAGES, check_backend

# Of flowcache.kernels.ATTENTION_BACKENDS, those that torch has on no CPU.
GPU_KERNELS = ("cudnn", "efficient", *FLASH_PACKAGES)
MOST_THREADS = 4  # by default


def known_device(name: str) -> str:
    """The device that a name means; "auto" is a GPU if there is one. Raises BadInput for one that cannot run jobs."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if str(device) != name:  # as well where torch wraps a number round that is too large for it
        raise BadInput(f"device={name} is unknown; choose auto, cpu, cuda, or meta for a dry run")
    if device.type == "meta":
        raise BadInput(f"device={name} is the dry run of run.py alone, which makes no videos; choose auto, cpu or cuda")
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device={name} cannot run this; choose auto, cpu, cuda, or meta for a dry run")
    if device.type == "cpu" and device.index:
        raise BadInput(f"device={name}: there is one CPU; give device=cpu, and threads=<n> for how much of it to use")
    return "cpu" if device.type == "cpu" else name


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have. Raises BadInput."""
    if torch.device(name).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise BadInput(f"device={name} but torch sees no CUDA device; use device=cpu, or install a CUDA build of torch")
    if (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device={name} but torch sees {counted(torch.cuda.device_count(), 'CUDA device')}, from 0")


def check_kernel(attention_backend: str, device: str) -> None:
    """Refuse a kernel that the device does not have, or whose package is missing. Raises BadInput."""
    if torch.device(device).type == "cpu" and attention_backend in GPU_KERNELS:
        raise BadInput(f"attention_backend={attention_backend} is a GPU's; on a CPU choose auto, flash or math")
    try:
        check_backend(attention_backend)
    except ValueError as error:
        raise BadInput(str(error)) from error


def default_workers(embedded: bool, device: str, num_prompts: int) -> int:
    """One worker for every core, up to 4; full-size models and GPUs work on one video at a time."""
    return min(4, num_cores(), num_prompts) if embedded and torch.device(device).type == "cpu" else 1


def default_threads(embedded: bool, device: str, workers: int) -> int:
    """CPU threads of each worker: the cores shared out, up to ``MOST_THREADS``; one for an embedded model on the CPU.

    Its matrices are so small that two threads of one video take 1.1 to 2 times as long as one on two cores that others
    use as well; up to a hundred times where they wait awake (``experiments.job.process``).
    """
    if embedded and torch.device(device).type == "cpu":
        return 1
    return max(1, min(MOST_THREADS, num_cores() // workers))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
