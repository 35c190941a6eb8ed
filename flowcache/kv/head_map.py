"""Head maps: how much each head of a network attends to which frames; measured by calibrating on a model.

``python -m experiments.calibrate kv=<one that sorts heads>`` makes them (flowcache.calibration). A map holds what was
measured and no decision, so that one file serves every method and all of its options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from flowcache.calibration import Calibration

Mass = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True, kw_only=True)
class HeadMap(Calibration):
    """Attributes.

    mass: by layer, head and key frame, oldest first: the share of its attention that a chunk with a whole history gives
        to the frame, mean over the chunk's queries; a head's shares add up to 1.
    chunk_frames: latent frames of the chunk itself, the last ones of ``mass``.
    """

    kind: ClassVar[str] = "head map"
    option: ClassVar[str] = "kv.heads"
    made_by: ClassVar[str] = "kv=forcing_kv"
    mass: Mass = field(repr=False)
    chunk_frames: int

    @classmethod
    def taken(cls, data: dict[str, Any]) -> dict[str, Any]:
        mass = tuple(tuple(tuple(map(float, head)) for head in layer) for layer in data.pop("mass"))
        chunk_frames = int(data.pop("chunk_frames"))
        _check(mass, chunk_frames)
        return {"mass": mass, "chunk_frames": chunk_frames}

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
