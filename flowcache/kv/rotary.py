"""How a model's queries and keys carry their position: pairs of channels, turned by angles; for who must undo it.

Shape letters: E channels a head, P = E/2 pairs, S places (tokens) of a latent frame, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RotaryPairs:
    """Pair p of a token at place s of latent frame f is turned by f * time[p] + space[s, p], in radians.

    Attributes:
        first, second: int64 [P], a pair's channels, each channel once; those that are never turned have angles of 0.
        time: float32 [P], a latent frame's.
        space: float32 [S, P].
    """

    first: Tensor
    second: Tensor
    time: Tensor
    space: Tensor

    def turned_back(self, x: Tensor, frame: Tensor, place: Tensor) -> Tensor:
        """Queries or keys [..., N, E] by the angles of their frames and places, each [..., N] or [N], as complex64
        [..., N, P]."""
        angle = frame[..., None] * self.time + self.space[place]
        pairs = torch.complex(x[..., self.first].float(), x[..., self.second].float())
        return pairs * torch.polar(torch.ones_like(angle), -angle)
