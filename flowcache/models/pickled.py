"""Pickled weights through torch's restricted unpickler, which builds tensors and plain containers and runs no code."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcache.models.checkpoint import DTYPES, CheckpointError, Stored, damaged, unknown_type

Choose = Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]  # a file's part that counts, of what it holds


def load_pickle(path: Path, device: str = "cpu") -> Mapping[str, Any]:
    """What a file holds, by name; on device "meta" without any weights, otherwise mapped from the file.

    Raises CheckpointError for a file that is damaged, holds more than tensors, or holds no names.
    """
    try:
        with path.open("rb") as file:
            mapped = file.read(2) == b"PK"  # files of before torch 1.6 cannot be mapped
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:  # of zipfile, pickle and torch
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise CheckpointError(
                f"{path} holds more than tensors ({code[1]}), which could run code and is not opened; use the published"
                " file, or save its tensors alone where you trust it"
            ) from error
        # Torch's first line may advise to read the file without the restriction: not here.
        found = re.search(r"WeightsUnpickler error: (.+)", str(error)) or re.match(r"(?!Weights only)(.+)", str(error))
        reason = found[1].strip() if found else type(error).__name__
        raise damaged(path, OSError(reason)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no named tensors; give a file of weights")
    return content


def pickled_headers(path: Path, choose: Choose | None = None) -> dict[str, Stored]:
    """Every tensor of a file, or of the part that counts, by its own name; no weights are read.

    Raises CheckpointError, also for entries that are no tensors.
    """
    stored = {}
    for name, tensor in _chosen(path, "meta", choose).items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(tensor).__name__} by the name of {name}, where weights were expected; give a "
                "file of weights"
            )
        if tensor.dtype not in DTYPES.values():
            raise unknown_type(path, name, str(tensor.dtype).removeprefix("torch."))
        stored[name] = Stored(path, name, tuple(tensor.shape), tensor.dtype)
    return stored


def read_pickled(
    path: Path, names: Collection[str], device: torch.device, choose: Choose | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Some tensors of a file, one at a time, on ``device``; only their pages are read. Raises CheckpointError."""
    content = _chosen(path, "cpu", choose)
    for name in names:
        yield name, content[name].to(device, copy=True)  # the file may change while its tensors are in use


def _chosen(path: Path, device: str, choose: Choose | None) -> Mapping[str, Any]:
    content = load_pickle(path, device)
    return content if choose is None else choose(path, content)
