"""What a forecast is: a function of a chunk's last computed outputs and their own times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.options import is_count
from flowcache.part import Part


@dataclass(frozen=True)
class Point:
    """A computed output and the chunk's own time then (see flowcache.schedule.ChunkStep)."""

    t: float
    output: Tensor


@dataclass(kw_only=True)
class Forecast(Part, ABC):
    """Of one chunk and guidance branch at a time; what an output is, the model says.

    Attributes:
        depth: computed outputs that it looks back on, at most; each is kept in memory.
        quantity: what to forecast, of what the model offers ("velocity", "displacement", "residual"); None takes the
            model's own.
    """

    depth: ClassVar[int]
    quantity: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(getattr(self, "depth", None)):
            raise TypeError(f"{type(self).__name__} must say by its depth how many computed outputs it looks back on")
        if not isinstance(self.quantity, str | None):
            raise ValueError(f"quantity={self.quantity!r} must be the name of a model's quantity, or null for its own")

    @abstractmethod
    def predict(self, t: float, points: Sequence[Point]) -> Tensor:
        """The output at a time, in the shape and type of the computed ones.

        ``points`` are the chunk's last computed outputs, newest first: at least one, at most ``depth``. They must not
        be changed.
        """
