"""The official numbers in tests/goldens, a folder a source; its README.md says where they are from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"


@cache
def manifest(name: str) -> dict[str, Any]:
    """What <folder>/<file>.json says: cases, settings, and how they were made; not to be written to."""
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of <folder>/<file>.safetensors, as they were saved; not to be written to."""
    return load_file(GOLDENS / f"{name}.safetensors")
