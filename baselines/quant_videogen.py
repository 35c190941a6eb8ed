"""Quant-VideoGen (arXiv 2602.02958): k-means over a chunk's tokens, stage after stage, and what is left in few bits.

Source: svg-project/Quant-VideoGen. Shape letters: B batch, G key-value heads, T tokens of a chunk, E channels a head, R
groups of a token, M clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.kv.store.clusters import MOST_CLUSTERS, cluster, evenly_spread, of_ids
from flowcache.kv.store.float8 import LARGEST
from flowcache.kv.store.grid import group_size, pack, unpack
from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind
from flowcache.options import check_counts, is_count

LEAST_TOKENS = 16  # of a cluster, in the mean: with 256 clusters of a short chunk there would be nothing left to round


@dataclass(kw_only=True)
class QuantVideoGen(Quantised):
    """The released scripts' form: a symmetric grid, whose scales are held in E4M3.

    Starts from tokens at equal distances, where the released code draws some without a seed.

    Attributes:
        bits: of a code, 2 or 4; of 2 bits, only -1, 0 and 1 occur.
        clusters: of a head, 256 at most; no more than a sixteenth of the chunk's tokens.
        stages: how often clusters are taken off ("progressive"); the scripts' is 1, their library's 4.
        iterations: of k-means.
        group: channels of a token that share a scale, at most.
    """

    bits: int
    clusters: int = 256
    stages: int = 1
    iterations: int = 2
    group: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 4):
            raise ValueError(f"bits={self.bits!r} must be 2 or 4")
        if not (is_count(self.clusters) and self.clusters <= MOST_CLUSTERS):
            raise ValueError(f"clusters={self.clusters!r} must be a whole number from 1 to {MOST_CLUSTERS}")
        check_counts(stages=self.stages, iterations=self.iterations, group=self.group)
        if not hasattr(torch, "float8_e4m3fn"):
            raise ValueError(f"torch {torch.__version__} has no 8-bit floating point, which scales are held in")

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """Codes uint8 [B, G, T, R, bytes] and scales E4M3 [B, G, T, R]; and of every stage ids uint8 [B, G, T] and
        centroids in the network's type [B, G, M, E]."""
        rest, clusters = x.float(), []
        for stage in range(self.stages):
            ids, centroids = cluster(rest, self.starts(rest, stage), self.iterations)
            clusters += [ids, centroids.to(self._shape.dtype)]
            rest = rest - of_ids(clusters[-1], ids).float()
        groups = rest.unflatten(-1, (-1, group_size(self.group, x.shape[-1])))
        top = 2 ** (self.bits - 1) - 1
        scale = (groups.abs().amax(-1) / top).clamp(max=LARGEST).to(torch.float8_e4m3fn)
        # Of a cluster of one token nothing is left, and its scale is 0.
        steps = groups / torch.where(scale.float() == 0, 1.0, scale.float())[..., None]
        codes = steps.sign() * (steps.abs() + 0.5).floor()  # half away from zero, as on a GPU
        codes = (codes.clamp(-top, top) + top).to(torch.uint8)
        return [pack(codes, self.bits), scale, *clusters]

    def starts(self, rest: Tensor, stage: int) -> Tensor:
        """Centroids [B, G, M, E] that a stage's k-means begins with."""
        return evenly_spread(rest, max(1, min(self.clusters, rest.shape[2] // LEAST_TOKENS)))

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        packed, scale, *clusters = parts
        codes = unpack(packed, self.bits, self._shape.channels // scale.shape[-1]).float()
        x = ((codes - (2 ** (self.bits - 1) - 1)) * scale.float()[..., None]).flatten(-2)
        for ids, centroids in zip(clusters[::2], clusters[1::2], strict=True):
            x += of_ids(centroids, ids)
        return x

    def logit_noise(self, parts: Sequence[Tensor], energy: Tensor) -> Tensor:
        scale = parts[1].float()
        of_group = energy.unflatten(-1, (scale.shape[-1], -1)).sum(-1)
        return (scale.square() * of_group[:, :, None]).sum(-1) / 12
