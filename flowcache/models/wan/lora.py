"""Adapters of low rank: W + (alpha / rank) B A, merged into a transformer's matrices as they are loaded.

Source: NVlabs/LongLive (branch v1.0) utils/lora_utils.py, whose names are those of peft.

Shape letters: R rank, I and O a matrix's inputs and outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcache.models.checkpoint import CheckpointError, Stored, shortened
from flowcache.models.wan.modules import one_file, reader
from flowcache.models.wan.names import transformer_name, unwrapped

SECTION = "generator_lora"  # under which LongLive's file holds it
_DOWN, _UP = ("lora_A", "lora_down"), ("lora_B", "lora_up")
_ENTRY = re.compile(
    r"(?:base_model\.model\.|transformer\.|diffusion_model\.)?(?P<layer>.+)\."
    rf"(?:(?P<half>{'|'.join(_DOWN + _UP)})(?:\.default)?\.weight|alpha)"
)


@dataclass(frozen=True)
class _Entries:
    """What belongs to one matrix, as headers."""

    down: Stored | None = None
    up: Stored | None = None
    alpha: Stored | None = None


@dataclass(frozen=True)
class Adapter:
    """Changes of a transformer's matrices.

    Attributes:
        changes: by the matrix' name in diffusers' transformer: A [R, I], B [O, R] and alpha / R.
    """

    changes: Mapping[str, tuple[Tensor, Tensor, float]]

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """A weight with its change, float32; without one it is returned as it is."""
        if name not in self.changes:
            return weight
        down, up, scale = self.changes[name]
        return torch.addmm(weight.float(), up.to(weight.device).float(), down.to(weight.device).float(), alpha=scale)


def adapter_headers(path: Path) -> dict[str, Stored]:
    """The tensors of an adapter's file by its own names, as headers. Raises CheckpointError."""
    return one_file(path, _choose)


def misfit(path: Path, stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why an adapter does not fit a transformer of these shapes, in one line; None if it does."""
    problems, found = [], _by_matrix(stored)
    strange = sorted(name for name in stored if _ENTRY.fullmatch(name) is None)
    if strange:
        problems.append(f"{len(strange)} entries are no halves of a low-rank adapter ({shortened(strange)})")
    if not found and not strange:
        problems.append("it is empty")
    unknown = sorted(name for name in found if len(shapes.get(name, ())) != 2)
    if unknown:
        problems.append(f"{len(unknown)} are of no matrix that the transformer has ({shortened(unknown)})")
    half = sorted(name for name, entries in found.items() if entries.down is None or entries.up is None)
    if half:
        problems.append(f"{len(half)} lack one of their two halves ({shortened(half)})")
    wrong = [name for name in sorted(found.keys() - {*unknown, *half}) if not _fits(found[name], shapes[name])]
    if wrong:
        first = found[wrong[0]]
        problems.append(
            f"{len(wrong)} wrong shapes (first {wrong[0]}, which is {list(shapes[wrong[0]])}: lora_A is "
            f"{list(first.down.shape)} and lora_B {list(first.up.shape)})"
        )
    if not problems:
        return None
    return (
        f"the adapter {path} does not fit the transformer: {'; '.join(problems)}. Give one that was trained on it, or "
        "none"
    )


def read_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]], alpha: float | None = None) -> Adapter:
    """Read an adapter for a transformer of these shapes; that it fits is known before a weight is read.

    Args:
        alpha: of all matrices; None is what the file says, and where it says nothing a matrix' own rank (scale 1, as
            LongLive's has it: rank 256, alpha 256).

    Raises CheckpointError saying what does not fit, ValueError for an alpha that is not positive and finite.
    """
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"lora_alpha={alpha!r} must be positive and finite (null is the file's own)")
    stored = adapter_headers(path)
    problem = misfit(path, stored, shapes)
    if problem:
        raise CheckpointError(problem)
    tensors = dict(reader(path, _choose)(path, list(stored), torch.device("cpu")))
    changes = {}
    for name, entries in _by_matrix(stored).items():
        down, up = tensors[entries.down.name], tensors[entries.up.name]
        own = len(down) if entries.alpha is None else float(tensors[entries.alpha.name])
        changes[name] = (down, up, (own if alpha is None else alpha) / len(down))
    return Adapter(changes)


def _choose(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    held = [name for name, part in content.items() if isinstance(part, Mapping)]
    if held and SECTION not in held:
        raise CheckpointError(f"{path} has no {SECTION!r}: it holds {', '.join(held)}; give the file of an adapter")
    return content[SECTION] if held else content


def _by_matrix(stored: Mapping[str, Stored]) -> dict[str, _Entries]:
    """Entries by the name of their matrix in diffusers' transformer; those of no known kind are left out."""
    found: dict[str, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        entry = _ENTRY.fullmatch(name)
        if entry is not None:
            half = entry["half"]
            kind = "alpha" if half is None else "down" if half in _DOWN else "up"
            found.setdefault(transformer_name(unwrapped(f"{entry['layer']}.weight")), {})[kind] = tensor
    return {name: _Entries(**entries) for name, entries in found.items()}


def _fits(entries: _Entries, shape: tuple[int, ...]) -> bool:
    """Whether A is [R, I] and B [O, R] of a matrix [O, I], and alpha, if any, one number."""
    down, up = entries.down.shape, entries.up.shape
    rank = down[0] if down else 0
    single = entries.alpha is None or entries.alpha.numel == 1
    return rank > 0 and (down, up) == ((rank, shape[1]), (shape[0], rank)) and single
