"""Devices by name, and how much of this machine a job takes by itself."""

from __future__ import annotations

import os

import torch

from experiments.job.errors import BadInput
from flowcache.kernels import FLASH_PACKAGES, check_backend

# Of flowcache.kernels.ATTENTION_BACKENDS, those that torch has on no CPU.
GPU_KERNELS = ("cudnn", "efficient", *FLASH_PACKAGES)
MOST_THREADS = 4  # by default


def known_device(name: str) -> str:
    """The device that a name means; "auto" is a GPU if there is one. Raises BadInput for one that cannot run jobs."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise BadInput(f"device={name} is unknown; choose auto, cpu, cuda, or meta for a dry run") from None
    if torch.device(name).type == "meta":
        raise BadInput("device=meta is the dry run of run.py alone, which makes no videos; choose auto, cpu or cuda")
    if torch.device(name).type not in ("cpu", "cuda"):
        raise BadInput(f"device={name} cannot run this; choose auto, cpu, cuda, or meta for a dry run")
    return name


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have. Raises BadInput."""
    if torch.device(name).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise BadInput(f"device={name} but torch sees no CUDA device; use device=cpu, or install a CUDA build of torch")
    if (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device={name} but there are {torch.cuda.device_count()} CUDA devices, counted from 0")


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
