"""How far a chunk has moved since the row before: the relative L1 distance that reuse policies accumulate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowcache.schedule import Row

# TeaCache's fits for SkyReels-V2 (SkyworkAI/SkyReels-V2: skyreels_v2_infer/modules/transformer.py), highest power
# first: the change of the network's output as a function of the change of its timestep modulation. "retained" belongs
# to runs that keep the first five steps. The fits are negative in places (the retained ones at 0: -0.05 and -0.32), so
# that an accumulated distance can fall.
POLYNOMIALS = {
    "skyreels_v2_1.3b_retained": (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
    "skyreels_v2_1.3b": (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1),
    "skyreels_v2_14b_retained": (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
    "skyreels_v2_14b": (-5.78454975374e3, 5.44950911966e3, -1.81116591783e3, 2.5627178429e2, -1.302252404e1),
}
Polynomial = str | Sequence[float]


@dataclass(frozen=True)
class ChunkDistance:
    """Mean absolute change of a chunk's features since the row before, and their mean magnitude there.

    Against the chunk before (flowcache.reuse.fingerprint) the change is the greatest of any number, and ``cosine`` the
    least of any token; there is none otherwise. ``tokens`` is every token's own relative change, float32 [T] on the
    host, for a policy that asks.
    """

    change: float
    magnitude: float
    cosine: float | None = None
    tokens: Tensor | None = None

    @property
    def relative(self) -> float:
        """L1_rel (paper, its equation of that name); the small constant is the official code's guard against 0/0."""
        return self.change / (self.magnitude + 1e-8)


def rescaling(polynomial: Polynomial | None) -> Callable[[float], float]:
    """The function that a polynomial stands for: a name of ``POLYNOMIALS``, coefficients highest power first, or None
    for the distance as it is. Raises ValueError for an unknown name or what are no numbers."""
    if polynomial is None:
        return lambda distance: distance
    if isinstance(polynomial, str):
        if polynomial not in POLYNOMIALS:
            raise ValueError(
                f"polynomial={polynomial!r} is unknown; there are {', '.join(POLYNOMIALS)}, or give numbers"
            )
        polynomial = POLYNOMIALS[polynomial]
    try:
        coefficients = [float(coefficient) for coefficient in polynomial]
    except (TypeError, ValueError):
        coefficients = []
    if not coefficients or not all(map(math.isfinite, coefficients)):
        raise ValueError(
            f"polynomial={polynomial!r} is no list of finite numbers; give coefficients, highest power first, or one "
            f"of {', '.join(POLYNOMIALS)}"
        )

    def rescaled(distance: float) -> float:
        value = 0.0
        for coefficient in coefficients:
            value = value * distance + coefficient
        return value

    return rescaled


def checked_polynomial(distance: str, polynomial: Polynomial | None) -> Polynomial | None:
    """The polynomial of a policy's options, coefficients as a tuple of numbers.

    Raises ValueError for a rescaled distance without one, or the reverse, and for what ``rescaling`` refuses.
    """
    if not isinstance(distance, str):
        raise ValueError(f"distance={distance!r} must be the name of a distance, such as 'embedded_latent'")
    if distance.startswith("rescaled_") == (polynomial is None):
        raise ValueError(
            f"distance={distance!r} does not go with polynomial={polynomial!r}: a rescaled distance needs one "
            f"({', '.join(POLYNOMIALS)}, or coefficients), and no other takes any"
        )
    rescaling(polynomial)
    if polynomial is None or isinstance(polynomial, str):
        return polynomial
    return tuple(float(coefficient) for coefficient in polynomial)


class FeatureSource(Protocol):
    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        """Features of consecutive chunks, [N, ...], of the kind that a distance names."""
        ...


def active_chunks(row: Row) -> tuple[int, ...]:
    """What a meter measures unless a model says otherwise."""
    return row.chunks


class DistanceMeter:
    """Measures chunks against the row before, reused rows included. Numbers stay on the device.

    Args:
        source: gives the features, one generation of a model.
        kind: "embedded_latent" (patch-embedded latents, the published choice on MAGI-1) or "latent"; models may offer
            more.
        measured: which chunks to measure in a row, neighbours in order; the active ones by default.
        tokens: tell every token's own relative change, too; of features [N, T, D].
    """

    def __init__(
        self,
        source: FeatureSource,
        kind: str,
        measured: Callable[[Row], tuple[int, ...]] = active_chunks,
        tokens: bool = False,
    ) -> None:
        self.source, self.kind, self.measured, self.tokens = source, kind, measured, tokens
        self._chunks: tuple[int, ...] = ()
        self._features: Tensor | None = None
        self._window = 0

    def measure(self, row: Row) -> tuple[list[int], Tensor | None]:
        """Chunks measured both in this row and in the one before, and float32 [chunks, 2], their changes and magnitudes
        (see ChunkDistance), or [chunks, 2 + T] with every token's relative change; none where a new window begins.

        Raises ValueError on device "meta", where there are no numbers.
        """
        chunks = self.measured(row)
        features = self.source.features(self.kind, chunks)
        check_numbers(features, self.kind)
        common = [chunk for chunk in chunks if chunk in self._chunks and row.window == self._window]
        numbers = None
        if common:
            now = features[chunks.index(common[0]) :][: len(common)].float()
            before = self._features[self._chunks.index(common[0]) :][: len(common)].float()
            changes, sizes = (now - before).abs_(), before.abs()
            all_but_chunks = tuple(range(1, now.ndim))  # not flattened: features with tokens last would be copied
            numbers = torch.stack([changes.mean(all_but_chunks), sizes.mean(all_but_chunks)], dim=1)
            if self.tokens:
                numbers = torch.cat([numbers, changes.mean(2) / (sizes.mean(2) + 1e-8)], dim=1)
        self._chunks, self._features, self._window = chunks, features, row.window
        return common, numbers

    def decided(self, row: Row, computed: Sequence[int]) -> None:
        """Which chunks compute makes no difference to what the next row is measured against."""


def check_numbers(features: Tensor, kind: str) -> None:
    """Refuse features of a dry run. Raises ValueError."""
    if features.device.type == "meta":
        raise ValueError(
            f"a dry run on device meta has no {kind!r} distances to decide by; take a method that decides without "
            "(vanilla, vanilla_kv, every_k), or load weights"
        )
