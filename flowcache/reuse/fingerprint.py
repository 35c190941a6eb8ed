"""How like the chunk before a chunk is at the same own step: what a policy decides by that reuses across chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.reuse.distance import FeatureSource, check_numbers
from flowcache.schedule import Row


class ChunkSource(FeatureSource, Protocol):
    def follows(self, chunk: int) -> bool:
        """Whether a chunk goes on with what the chunk before it was: the same prompt, and as many frames."""
        ...


class FingerprintMeter:
    """Measures chunks against the last one that computed the same own step, by some of their tokens and their mean
    (X-Cache, arXiv 2604.20289). Numbers stay on the device.

    The chunks since must have followed each other and have taken that step, as whatever a chunk then takes of them has
    come down to it. Fingerprints take a few kilobytes a step.

    Args:
        source: gives the features [N, ..., D], positions between, one generation of a model.
        kind: of the features, see ``DistanceMeter``.
        num_tokens: K, spread evenly over all axes of the positions.
    """

    def __init__(self, source: ChunkSource, kind: str, num_tokens: int) -> None:
        self.source, self.kind, self.num_tokens = source, kind, num_tokens
        self._places: dict[tuple[int, ...], Tensor] = {}
        # By a step's index and time: the newest chunk that has taken it, and the last computed one's fingerprint.
        self._references: dict[tuple[int, float], tuple[int, Tensor]] = {}
        self._fingerprints: Tensor | None = None
        self._window = 0

    def measure(self, row: Row) -> tuple[list[int], Tensor | None]:
        """Chunks that can be compared, and float32 [chunks, 3]: the greatest change of any number of the fingerprint,
        their mean magnitude before, and the least cosine of a token (see ChunkDistance).

        Raises ValueError on device "meta", where there are no numbers.
        """
        features = self.source.features(self.kind, row.chunks)
        check_numbers(features, self.kind)
        if row.window != self._window:
            self._references.clear()
            self._window = row.window
        self._fingerprints = self._fingerprints_of(features)
        chunks, numbers = [], []
        for step, now in zip(row.steps, self._fingerprints, strict=True):
            newest, before = self._references.get((step.step, step.t), (None, now))
            if newest == step.chunk - 1 and self.source.follows(step.chunk):
                cosine = F.cosine_similarity(now, before, dim=-1).amin()
                chunks.append(step.chunk)
                numbers.append(torch.stack([(now - before).abs().amax(), before.abs().mean(), cosine]))
        return chunks, torch.stack(numbers) if numbers else None

    def decided(self, row: Row, computed: Sequence[int]) -> None:
        """A chunk that computes is what those after it are compared with; one that does not hands on what it took."""
        for step, now in zip(row.steps, self._fingerprints, strict=True):
            key = step.step, step.t
            before = now if step.chunk in computed else self._references.get(key, (step.chunk, now))[1]
            self._references[key] = step.chunk, before

    def _fingerprints_of(self, features: Tensor) -> Tensor:
        """[N, ..., D] -> float32 [N, K + 1, D]."""
        positions = tuple(features.shape[1:-1])
        if positions not in self._places:
            self._places[positions] = spread(positions, self.num_tokens).to(features.device)
        tokens = features.flatten(1, -2)
        mean = tokens.mean(1, keepdim=True, dtype=torch.float32)
        return torch.cat([tokens[:, self._places[positions]].float(), mean], dim=1)


def spread(shape: Sequence[int], count: int) -> Tensor:
    """So many places of a grid of one to three axes, int64 [count] into it flattened: even along each, and together.

    Hammersley's points, for every n-th place of a flattened grid may lie in one row or column of it.
    """
    places = []
    for index in range(count):
        place = 0
        for size, base in zip(shape, (None, 2, 3), strict=False):
            along = index / count if base is None else _radical_inverse(index, base)
            place = place * size + int((along + 0.5 / count) % 1 * size)
        places.append(place)
    return torch.tensor(places)


def _radical_inverse(index: int, base: int) -> float:
    """Its digits behind the point, in reverse: from 0 to below 1."""
    inverse, weight = 0.0, 1.0
    while index:
        weight /= base
        index, digit = divmod(index, base)
        inverse += digit * weight
    return inverse
