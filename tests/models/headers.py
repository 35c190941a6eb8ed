"""Checkpoint files: whole, or of any size in a moment with true headers and lengths and nothing in them (sparse)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_sparse(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of tensors' shapes and types (they may be on device "meta")."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, or a pickle by its suffix; a sparse one of tensors on device "meta"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(tensor.is_meta for tensor in tensors.values()):
        write_sparse(path, tensors)
    elif path.suffix == ".safetensors":
        save_file(dict(tensors), path, metadata={"format": "pt"})
    else:
        torch.save(dict(tensors), path)


def write_shards(
    directory: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    num_shards: int,
    index: bool = True,
    suffix: str = "safetensors",
) -> None:
    """``stem``-00001-of-0000N.safetensors and their index, as official checkpoints are laid out; one is whole."""
    if num_shards == 1:
        write_tensors(directory / f"{stem}.{suffix}", tensors)
        return
    names, weight_map = list(tensors), {}
    for shard in range(num_shards):
        file = f"{stem}-{shard + 1:05}-of-{num_shards:05}.{suffix}"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        write_tensors(directory / file, part)
        weight_map |= dict.fromkeys(part, file)
    if index:
        total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(document), encoding="utf-8")
