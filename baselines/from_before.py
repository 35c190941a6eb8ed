"""What the chunk before made of the same step: X-Cache's residual (arXiv 2604.20289), of the whole network's output.

No code is published; this is our reading. The paper adds to a block's input what the block added one chunk earlier.
Here the input is the chunk's last output and the block is the whole network with the steps in between: as the chunk
before went on from that step's output to this one's, so does this chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowcache.forecast.base import Forecast, Point


@dataclass(kw_only=True)
class FromBefore(Forecast):
    """The last computed output and the change, between the same steps, of what the chunk before took.

    A step that the chunk before did not compute either hands on the change of the last chunk that did. Where there is
    none to take from, it is ``Hold``.
    """

    depth: ClassVar[int] = 1
    borrows: ClassVar[bool] = True

    def predict(self, t: float, points: Sequence[Point], step: int = 0, borrowed: Tensor | None = None) -> Tensor:
        output = points[0].output
        return output if borrowed is None else output + borrowed
