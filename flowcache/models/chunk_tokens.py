"""A chunk's tokens: those that run where only some do, out of a pack and back again, and where they stand in a latent.

A chunk of which only some tokens compute goes through the same forward as any other, with fewer queries. What its other
tokens left in the cache stays, and is attended to.

Shape letters: T tokens a chunk, n of them that run, S tokens of a pack's chunks, R of them that run, C latent channels,
f x h x w a chunk's latent frames, rows and columns, P tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Subset:
    """Those of a chunk's tokens that run.

    Attributes:
        places: int64 [n], ascending, on the device.
        tokens_per_chunk: T.
    """

    places: Tensor
    tokens_per_chunk: int

    @staticmethod
    def of(mask: Tensor | None, device: torch.device | str) -> Subset | None:
        """Of a bool mask [T] on the host, which the device need not be waited for; None, and of a mask that leaves none
        out, is the whole chunk."""
        if mask is None or bool(mask.all()):
            return None
        places = mask.nonzero().flatten()
        if torch.device(device).type == "cuda":
            places = places.pin_memory()
        return Subset(places.to(device, non_blocking=True), len(mask))

    @property
    def num_tokens(self) -> int:
        return len(self.places)

    @property
    def mask(self) -> Tensor:
        """bool [T] on the device."""
        none = torch.zeros(self.tokens_per_chunk, dtype=torch.bool, device=self.places.device)
        return none.index_fill_(0, self.places, True)


@dataclass(frozen=True, eq=False)
class RunningTokens:
    """Which tokens of a pack's chunks run.

    Attributes:
        counts: of every chunk.
        places: int64 [R] among all S; None where all run.
    """

    counts: tuple[int, ...]
    places: Tensor | None

    @staticmethod
    def of(subsets: Sequence[Subset | None], tokens_per_chunk: int) -> RunningTokens:
        counts = tuple(tokens_per_chunk if subset is None else subset.num_tokens for subset in subsets)
        device = next((subset.places.device for subset in subsets if subset is not None), None)
        if device is None:
            return RunningTokens(counts, None)
        whole = torch.arange(tokens_per_chunk, device=device)
        each = [
            (whole if subset is None else subset.places) + index * tokens_per_chunk
            for index, subset in enumerate(subsets)
        ]
        return RunningTokens(counts, torch.cat(each))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each chunk's tokens stand among those that run."""
        ends = tuple(accumulate(self.counts, initial=0))
        return tuple(slice(start, end) for start, end in pairwise(ends))

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Of S tokens along ``dim`` the R that run; all of them as they are."""
        return x if self.places is None else x.index_select(dim, self.places)

    def put(self, running: Tensor, whole: Tensor, dim: int) -> Tensor:
        """``whole``, of S tokens along ``dim``, with the R that ran in their places."""
        return running if self.places is None else whole.index_copy(dim, self.places, running)

    def rows(self, tokens_per_row: int) -> Tensor | None:
        """For each token that runs the row of a table of conditions, one for so many tokens: int64 [R]; None where all
        run, so that a row's tokens stand together."""
        return None if self.places is None else self.places // tokens_per_row


def latent_mask(tokens: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """Tokens' mask, bool [T], each of one frame and a square patch -> of the chunk's latent, bool [1, 1, f, h, w]."""
    patch = round((frames * rows * columns / len(tokens)) ** 0.5)
    grid = tokens.view(1, 1, frames, rows // patch, columns // patch)
    return grid.repeat_interleave(patch, dim=3).repeat_interleave(patch, dim=4)


def latent_tokens(latents: Tensor, patch: int) -> Tensor:
    """Latents [1, C, f, h, w] -> what stands at their tokens, frame by frame: [1, f, P, C*patch*patch]."""
    of_frames = F.pixel_unshuffle(latents.transpose(1, 2), patch)  # [1, f, C*patch*patch, rows, columns]
    return of_frames.flatten(3).transpose(2, 3)
