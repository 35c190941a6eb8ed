"""What a store's rounding adds to logits, taken off again by the mask that attention is given anyway.

Shape letters: B batch, G key-value heads, Q queries, E channels a head, L tokens read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowcache.kv.store.base import KvStore


def corrected(mask: Tensor | None, store: KvStore, layer: int, spans: Sequence[slice], query: Tensor) -> Tensor | None:
    """A mask of the slots in ``spans``, less what the store's rounding adds to their logits.

    Args:
        mask: [B, G, 1, L], bool, or float to be added; None where every slot is seen.
        spans: slots, of L tokens together, in the order in which they are read.
        query: [B, G, Q, E], those that attend, of which the store needs the mean square by channel.

    Returns:
        ``mask`` itself where nothing is to be corrected; else [B, G, 1, L] in the query's type, -inf where not seen.
    """
    if not store.corrects:
        return mask
    energy = query.float().square().mean(2) / query.shape[-1]
    excess = [store.excess(layer, slots, energy) for slots in spans]
    if all(each is None for each in excess):
        return mask
    known = [
        energy.new_zeros((*energy.shape[:2], slots.stop - slots.start)) if each is None else each
        for each, slots in zip(excess, spans, strict=True)
    ]
    less = -torch.cat(known, dim=-1)[:, :, None]
    if mask is not None:
        less = less.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask.float() + less
    return less.to(query.dtype)
