"""k-means over the tokens of a chunk: what is common to many keys is stored once, and what is left is smaller.

Shape letters: B batch, G key-value heads, T tokens, E channels a head, M clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_CLUSTERS = 256  # that an id of one byte tells apart
_SLICE = 4096  # tokens whose distances to all centroids are held at once


def evenly_spread(x: Tensor, num_clusters: int) -> Tensor:
    """Centroids to start from: tokens of x [B, G, T, E] at equal distances, always the same ones; [B, G, M, E]."""
    places = torch.arange(num_clusters, device=x.device) * x.shape[2] // num_clusters
    return x.index_select(2, places)


def cluster(x: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Ids uint8 [B, G, T] and centroids [B, G, M, E] of tokens x [B, G, T, E], from given centroids, by Euclid.

    Ids are those before the centroids moved last, as in Quant-VideoGen (svg-project/Quant-VideoGen): what is left of a
    token is counted from where its centroid is now, and stays consistent. A cluster without tokens stays where it is.
    """
    ids = torch.zeros(x.shape[:3], dtype=torch.uint8, device=x.device)
    for _ in range(iterations):
        total, count = torch.zeros_like(centroids), centroids.new_zeros((*centroids.shape[:3], 1))
        half_norms = centroids.square().sum(-1)[:, :, None] / 2
        for start in range(0, x.shape[2], _SLICE):
            tokens = x[:, :, start : start + _SLICE]
            nearest = (half_norms - tokens @ centroids.mT).argmin(-1)
            ids[:, :, start : start + _SLICE] = nearest
            # A product, and not a scatter: its sums come in one order on every device.
            belongs = F.one_hot(nearest, centroids.shape[2]).to(x.dtype).mT
            total += belongs @ tokens
            count += belongs.sum(-1, keepdim=True)
        centroids = torch.where(count > 0, total / count.clamp(min=1), centroids)
    return ids, centroids


def of_ids(centroids: Tensor, ids: Tensor) -> Tensor:
    """Every token's centroid: [B, G, T, E] of centroids [B, G, M, E] and ids uint8 [B, G, T]."""
    index = ids.long()[..., None].expand(*ids.shape, centroids.shape[-1])
    return centroids.gather(2, index)
