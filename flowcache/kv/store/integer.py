"""Keys and values of finished chunks in 8, 4 or 2 bits: groups of a token's channels, each with a scale of its own.

Shape letters: B batch, G key-value heads, T tokens of a chunk, E channels a head, R groups of a token, M clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.kv.store.clusters import MOST_CLUSTERS, cluster, evenly_spread, of_ids
from flowcache.kv.store.grid import BITS, affine_variance, from_affine_grid, group_size, on_affine_grid, pack, unpack
from flowcache.kv.store.quantised import Quantised
from flowcache.kv.store.settling import Kind
from flowcache.options import check_counts


@dataclass(kw_only=True)
class Integer(Quantised):
    """A group lies between its lowest and its highest number, in 2^bits equal steps.

    With clusters, k-means over the chunk's tokens first takes off what many of them share (Quant-VideoGen, arXiv
    2602.02958), and once more of what is left in every further stage.

    Attributes:
        bits: of a code.
        group: channels that share a scale, in float16; a head's channels are cut into equal groups of at most so many.
        cluster_tokens: tokens to one centroid of a head, in the mean; 0 makes no clusters. There are at most 256.
        stages: how often clusters are taken off (the "progressive" form).
        iterations: of k-means.
    """

    bits: int
    group: int = 64
    cluster_tokens: int = 0
    stages: int = 1
    iterations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits!r} must be one of {', '.join(map(str, BITS))}")
        check_counts(group=self.group, stages=self.stages, iterations=self.iterations)
        check_counts(0, cluster_tokens=self.cluster_tokens)

    def encode(self, kind: Kind, x: Tensor) -> Sequence[Tensor]:
        """Codes uint8 [B, G, T, R, bytes], scale and lowest float16 [B, G, T, R]; and of every stage ids uint8
        [B, G, T] and centroids float16 [B, G, M, E]."""
        rest, clusters = x.float(), []
        if self.cluster_tokens:
            size = min(MOST_CLUSTERS, max(1, x.shape[2] // self.cluster_tokens))
            for _ in range(self.stages):
                ids, centroids = cluster(rest, evenly_spread(rest, size), self.iterations)
                clusters += [ids, centroids.half()]
                rest = rest - of_ids(clusters[-1], ids)
        groups = rest.unflatten(-1, (-1, group_size(self.group, x.shape[-1])))
        codes, scale, lowest = on_affine_grid(groups, self.bits, torch.float16)
        return [pack(codes, self.bits), scale[..., 0], lowest[..., 0], *clusters]

    def decode(self, kind: Kind, parts: Sequence[Tensor]) -> Tensor:
        packed, scale, lowest, *clusters = parts
        size = self._shape.channels // scale.shape[-1]
        codes = unpack(packed, self.bits, size)
        x = from_affine_grid(codes, scale[..., None], lowest[..., None]).flatten(-2)
        for ids, centroids in zip(clusters[::2], clusters[1::2], strict=True):
            x += of_ids(centroids, ids)
        return x

    def logit_noise(self, parts: Sequence[Tensor], energy: Tensor) -> Tensor:
        num_groups = parts[1].shape[-1]
        variance = affine_variance(parts[1], self._shape.channels // num_groups)
        of_group = energy.unflatten(-1, (num_groups, -1)).sum(-1)
        return (variance * of_group[:, :, None]).sum(-1)
