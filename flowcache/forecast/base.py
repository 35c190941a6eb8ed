"""What a forecast is: a function of a chunk's last computed outputs and their own times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.options import is_count, is_finite
from flowcache.part import Part


@dataclass(frozen=True)
class Point:
    """A computed output, the chunk's own time then (see flowcache.schedule.ChunkStep), and its own step.

    Forecasts work over times; steps are there for parity with published code, which counts them.
    """

    t: float
    output: Tensor
    step: int = 0


@dataclass(kw_only=True)
class Forecast(Part, ABC):
    """Of one chunk and guidance branch at a time; what an output is, the model says.

    Attributes:
        depth: computed outputs that it looks back on, at most; each is kept in memory.
        borrows: it is given, as ``borrowed``, by how much the output of the chunk before changed from the newest
            point's step to the one to forecast, but where that is not known, or the chunk does not follow that one (see
            flowcache.models.base.Generation). What the chunk before took is kept for it, too.
        observes: it is told of every computed output.
        quantity: what to forecast, of what the model offers ("velocity", "clean", "displacement", "residual"); None
            takes the model's own, with a correction its own of those that can be corrected.
        limit: how far a forecast may go from the last computed output, in root mean squares of that output; beyond, it
            goes as far in the same direction. None is no limit.
        correction: order of the polynomial over time by which a chunk's skipped steps are taken once more, as soon as
            its next output is known: through that output and so many before it (flowcache.forecast.correction). 0 lets
            them stand as they were forecast.
    """

    depth: ClassVar[int]
    borrows: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    quantity: str | None = None
    limit: float | None = None
    correction: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(getattr(self, "depth", None)):
            raise TypeError(f"{type(self).__name__} must say by its depth how many computed outputs it looks back on")
        if not isinstance(self.quantity, str | None):
            raise ValueError(f"quantity={self.quantity!r} must be the name of a model's quantity, or null for its own")
        if self.limit is not None and not (is_finite(self.limit) and self.limit > 0):
            raise ValueError(f"limit={self.limit!r} must be a finite number above 0, or null for none")
        if not is_count(self.correction, least=0):
            raise ValueError(
                f"correction={self.correction!r} must be a whole number of at least 0 (0 corrects nothing)"
            )

    def observe(self, chunk: int, t: float, output: Tensor, before: Point | None) -> None:
        """A chunk has computed at a time; ``before`` is its computed output before, None where it has none, or its
        outputs jumped meanwhile. Called where ``observes`` says so. Nothing may wait for the device."""

    @abstractmethod
    def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
        """The output at a time, in the shape and type of the computed ones.

        ``points`` are the chunk's last computed outputs, newest first: at least one, at most ``depth``. They must not
        be changed. ``step`` is the chunk's own step then, as in ``Point``: for published rules that count steps. A
        forecast that borrows takes one more argument, ``borrowed: Tensor | None = None``.
        """
