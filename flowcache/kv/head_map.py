"""Head maps: how much each head of a network attends to which frames; measured by calibrating on a model.

A map is a small JSON file, written by ``python -m experiments.calibrate kv=<one that sorts heads>``. It holds what was
measured and no decision, so that one file serves every method and all of its options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Mass = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class HeadMap:
    """What a file holds.

    Attributes:
        name: of the file, without its folder and ending.
        sha256: first 16 digits of its content's.
        mass: by layer, head and key frame, oldest first: the share of its attention that a chunk with a whole history
            gives to the frame, mean over the chunk's queries; a head's shares add up to 1.
        chunk_frames: latent frames of the chunk itself, the last ones of ``mass``.
        provenance: what it was made of: model, setting, weights, prompts, seed, fit ...
    """

    name: str
    sha256: str
    mass: Mass = field(repr=False)
    chunk_frames: int
    provenance: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def read(cls, path: str | Path) -> HeadMap:
        """Raises ValueError for a file that is not there, or is no head map."""
        path = Path(path)
        try:
            text = path.read_bytes()
            data = json.loads(text)
            mass = tuple(tuple(tuple(map(float, head)) for head in layer) for layer in data.pop("mass"))
            chunk_frames = int(data.pop("chunk_frames"))
            _check(mass, chunk_frames)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"heads={str(path)!r} cannot be read as a head map ({error}); give a file that python -m "
                "experiments.calibrate kv=forcing_kv wrote"
            ) from error
        return cls(path.stem, hashlib.sha256(text).hexdigest()[:16], mass, chunk_frames, data)

    def described(self) -> dict[str, str]:
        """What tells it from others, wherever it lies."""
        return {"heads": self.name, "sha256": self.sha256}

    @property
    def size(self) -> tuple[int, int]:
        """Layers, and heads of a layer."""
        return len(self.mass), len(self.mass[0])


def _check(mass: Mass, chunk_frames: int) -> None:
    frames = len(mass[0][0]) if mass and mass[0] else 0
    if not 0 < chunk_frames < frames:
        raise ValueError(f"it must tell of more frames than a chunk's {chunk_frames}, and tells of {frames}")
    for layer, heads in enumerate(mass):
        if len(heads) != len(mass[0]) or any(len(head) != frames for head in heads):
            raise ValueError(f"layer {layer} has other heads or frames than layer 0")
        for head in heads:
            if min(head) < 0 or abs(sum(head) - 1) > 0.01:
                raise ValueError(f"layer {layer}: a head's shares must add up to 1, and are {list(head)}")
