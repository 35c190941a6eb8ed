"""The official numbers in tests/goldens/flowcache: cache decisions and KV compression, on synthetic inputs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens" / "flowcache"


@cache
def manifest(name: str) -> dict[str, Any]:
    """The cases of one file and how they were made."""
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of one file; not to be written to."""
    return load_file(GOLDENS / f"{name}.safetensors")
