"""How far a chunk has moved since the row before: the relative L1 distance that reuse policies accumulate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowcache.schedule import Row


@dataclass(frozen=True)
class ChunkDistance:
    """Mean absolute change of a chunk's features since the row before, and their mean magnitude there."""

    change: float
    magnitude: float

    @property
    def relative(self) -> float:
        """L1_rel (paper, its equation of that name); the small constant is the official code's guard against 0/0."""
        return self.change / (self.magnitude + 1e-8)


class FeatureSource(Protocol):
    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        """Features of consecutive chunks, [N, ...], of the kind that a distance names."""
        ...


class DistanceMeter:
    """Measures every active chunk against the row before, reused rows included, with one read by the host a row.

    Args:
        source: gives the features, one generation of a model.
        kind: "embedded_latent" (patch-embedded latents, the published choice on MAGI-1) or "latent"; models may offer
            more.
    """

    def __init__(self, source: FeatureSource, kind: str) -> None:
        self.source, self.kind = source, kind
        self._chunks: tuple[int, ...] = ()
        self._features: Tensor | None = None

    def measure(self, row: Row) -> dict[int, ChunkDistance]:
        """Distances of the chunks active both in this row and in the one before."""
        chunks, features = row.chunks, self.source.features(self.kind, row.chunks)
        common = [chunk for chunk in chunks if chunk in self._chunks]
        distances = {}
        if common:
            now = features[chunks.index(common[0]) :][: len(common)].flatten(1).float()
            before = self._features[self._chunks.index(common[0]) :][: len(common)].flatten(1).float()
            numbers = torch.stack([(now - before).abs().mean(1), before.abs().mean(1)], dim=1).tolist()
            distances = {chunk: ChunkDistance(*pair) for chunk, pair in zip(common, numbers, strict=True)}
        self._chunks, self._features = chunks, features
        return distances
