"""Rotary positions of a video, put together frame by frame, so that no table grows with its pixels and its length.

Shape letters: F latent frames, P tokens a frame, S = F*P, E channels a head, N keys, B batch, G heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache.kv.rotary import RotaryPairs
from flowcache.models.wan.attention import rotate

BASE = 10000.0


class Rotary:
    """Of one video: time, row and column of a token turn pairs of a head's channels, angles in float64 as upstream.

    Args:
        head_channels: E. Of its pairs rows and columns get a third each, rounded down, and time, which comes first, the
            rest.
        num_frames: latent frames of the video, prefix included.
        rows, columns: of patches.
        device: of the tables.
    """

    def __init__(
        self, head_channels: int, num_frames: int, rows: int, columns: int, device: torch.device | str
    ) -> None:
        of_time, side = _shares(head_channels)
        self._time = _waves(num_frames, of_time, device)
        of_rows, of_columns = _waves(rows, side, device), _waves(columns, side, device)
        shape = (rows, columns, side)
        self._space = tuple(
            torch.cat([row[:, None].expand(shape), column[None].expand(shape)], dim=-1).flatten(0, 1)
            for row, column in zip(of_rows, of_columns, strict=True)
        )

    def frames(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of latent frames first..last of the video, each [S, 1, E/2]."""
        tables = []
        for time, space in zip(self._time, self._space, strict=True):
            own = time[first : last + 1, None].expand(-1, len(space), -1)
            tables.append(torch.cat([own, space.expand(len(own), -1, -1)], dim=-1).flatten(0, 1)[:, None])
        return tables[0], tables[1]

    def later(self, key: Tensor, num_frames: int) -> Tensor:
        """Rotated keys [B, G, N, E] as if they stood so many frames later."""
        cosine, sine = (time[num_frames] for time in self._time)
        rest = self._space[0].new_zeros(self._space[0].shape[-1])
        return rotate(key, (torch.cat([cosine, rest + 1]), torch.cat([sine, rest])))


def rotary_pairs(head_channels: int, rows: int, columns: int, device: torch.device | str) -> RotaryPairs:
    """The same angles as numbers, for a video of any length."""
    of_time, side = _shares(head_channels)
    still = torch.zeros(2 * side, dtype=torch.float64)
    shape = (rows, columns, side)
    of_rows = (torch.arange(rows)[:, None] * _speeds(side))[:, None].expand(shape)
    of_columns = (torch.arange(columns)[:, None] * _speeds(side))[None].expand(shape)
    space = torch.cat([torch.zeros(rows, columns, of_time), of_rows, of_columns], dim=-1).flatten(0, 1)
    channels = torch.arange(head_channels, device=device).unflatten(0, (-1, 2))
    time = torch.cat([_speeds(of_time), still])
    return RotaryPairs(channels[:, 0], channels[:, 1], time.float().to(device), space.float().to(device))


def _shares(head_channels: int) -> tuple[int, int]:
    """Pairs that time turns, and each of rows and columns."""
    pairs = head_channels // 2
    return pairs - 2 * (pairs // 3), pairs // 3


def _speeds(pairs: int) -> Tensor:
    """Radians a position: float64 [pairs]."""
    return torch.pow(BASE, -torch.arange(pairs, dtype=torch.float64) / pairs)


def _waves(num_positions: int, pairs: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosine and sine of an axis, float32 [positions, pairs]."""
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * _speeds(pairs)
    return angles.cos().float().to(device), angles.sin().float().to(device)
