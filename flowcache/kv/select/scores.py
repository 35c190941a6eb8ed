"""How keys are scored: importance, redundancy and position, as pure functions of tensors.

After FlowCache (arXiv 2602.10825, its section on KV cache compression; mikeallen39/FlowCache:
inference/pipeline/kvcompress/kv_compressor.py) and R-KV (Zefan-Cai/R-KV). Everything stays on the device of the keys,
nothing waits for it, no matrix of L x L or of all queries x L exists whole, and scores are float32 whatever the type of
the keys.

Shape letters: ``...`` any leading dimensions (layers, branches, batch), scored side by side; H query heads, G key-value
heads, R = H/G query heads that share one (query head h belongs to key-value head h // R), Q queries, L keys, E channels
a head.

A key without direction - zero, or with a norm that is NaN or infinite in float32 - is *unusable*: it takes no part in
the scores of other keys.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.options import is_count

Weighting = Literal["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]

# On a CPU a block fits its cache, and malloc keeps its memory instead of giving it back: 64 MiB take 1.5 times as
# long. A GPU wants few, large launches.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 16 * 2**20, 128 * 2**20


def key_norms(key: Tensor) -> Tensor:
    """Norms of keys [..., G, L, E]: float32 [..., G, L], 0 for unusable keys."""
    return torch.linalg.vector_norm(key, dim=-1, dtype=torch.float32).nan_to_num(nan=0.0, posinf=0.0)


def importance(
    query: Tensor,
    key: Tensor,
    pool_kernel: int = 7,
    norm: Tensor | None = None,
    block_bytes: int | None = None,
) -> Tensor:
    """How much the queries attend to each key: float32 [..., G, L].

    Per key-value head: softmax over the usable keys of q.k / sqrt(E), where the query heads that share the head take
    the maximum of their logits first; mean over the queries; then max-pool over neighbouring keys (paper, Imp).

    A block of queries is worked on at a time, with its logits against *all* keys, so every softmax is exact in one pass
    over the product. Blocking the keys too would need a running normaliser and the product twice, and no cache is so
    long that a few rows of logits do not fit.

    Args:
        query: [..., H, Q, E], rotated as the keys are.
        key: [..., G, L, E].
        pool_kernel: width of the max-pool, odd.
        norm: ``key_norms(key)``, if at hand.
        block_bytes: about the memory taken beyond the result; 16 MiB on a CPU and 128 MiB elsewhere by default.

    A NaN or infinite query makes all of its heads' values NaN, as does a head without any usable key. Raises ValueError
    for shapes that do not fit each other and an even ``pool_kernel``.
    """
    check_pool(pool_kernel)
    total = _attention(query, key, norm, block_bytes, per_head=False)[..., 0, :]
    total /= query.shape[-2]
    pooled = F.max_pool1d(total.flatten(0, -2), pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.unflatten(0, key.shape[:-2])


def attention_received(
    query: Tensor, key: Tensor, norm: Tensor | None = None, block_bytes: int | None = None
) -> Tensor:
    """How much attention each key gets from each query head, summed over its queries: float32 [..., G, R, L].

    Softmax over the usable keys of q.k / sqrt(E), of all queries alike: chunks attend in both directions, so that no
    key was there for more of them than another. Arguments, memory and errors as of ``importance``.
    """
    return _attention(query, key, norm, block_bytes, per_head=True)


def redundancy(key: Tensor, norm: Tensor | None = None, block_bytes: int | None = None) -> Tensor:
    """How much each key repeats the others: float32 [..., G, L]; unusable keys have 0, or NaN if no key is usable.

    Softmax over the keys of the mean cosine to all usable keys (paper, Red): linear in L, since the cosines of one key
    add up to its unit vector times the sum of all unit vectors. The paper counts a key's cosine to itself as 0; here it
    is 1 for every key alike, which the softmax does not see.

    Args:
        key: [..., G, L, E].
        norm: ``key_norms(key)``, if at hand.
        block_bytes: as for ``importance``.
    """
    norm = key_norms(key) if norm is None else norm
    block_bytes = _default_block_bytes(key) if block_bytes is None else block_bytes
    usable = norm > 0
    inverse = torch.where(usable, 1 / norm, 0.0)
    heads_a_block = max(1, block_bytes // (4 * key.shape[-2] * key.shape[-1]))
    parts = (tensor.split(heads_a_block) for tensor in (key.flatten(0, -3), inverse.flatten(0, -2)))
    cosines = torch.cat([_summed_cosines(*part) for part in zip(*parts, strict=True)]).unflatten(0, key.shape[:-2])
    mean = cosines / usable.sum(-1, keepdim=True)
    return mean.masked_fill_(~usable, -math.inf).softmax(-1)


def position_weights(
    weighting: Weighting, length: int, power: float = 3.0, device: torch.device | None = None
) -> Tensor:
    """Factors on the scores of keys in slots 0 ... L - 1: float32 [L], with x = slot / (L - 1).

    "exponential": 0.1 + 0.9 (1 - exp(-2x)) / (1 - exp(-2)); "polynomial": 0.1 + 0.9 x^power; "upper_convex_polynomial":
    2 (1 - (1 - x)^power), all three for late slots; "gaussian": for early slots, a bell around slot 0 with a standard
    deviation of L/4, stretched to 0.1 ... 1 (mikeallen39/FlowCache: kvcompress/kv_compressor.py). A single slot counts
    as x = 0.
    """
    slots = torch.arange(length, dtype=torch.float32, device=device)
    x = slots / max(1, length - 1)
    if weighting == "exponential":
        return 0.1 + 0.9 * (1 - torch.exp(-2 * x)) / (1 - math.exp(-2))
    if weighting == "polynomial":
        return 0.1 + 0.9 * x**power
    if weighting == "upper_convex_polynomial":
        return 2 * (1 - (1 - x) ** power)
    if weighting == "gaussian":
        lowest = math.exp(-0.5 * (4 * (length - 1) / length) ** 2) if length > 1 else 0.0
        return 0.1 + 0.9 * (torch.exp(-0.5 * (4 * slots / length) ** 2) - lowest) / (1 - lowest)
    raise ValueError(f"weighting={weighting!r} has no position weights")


def scoring_flops(num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
    """Operations of importance and redundancy in one layer, matrix products only, multiply-add = 2."""
    return 2 * length * channels * (num_heads * num_queries + 2 * num_groups)


def _default_block_bytes(key: Tensor) -> int:
    return CPU_BLOCK_BYTES if key.device.type == "cpu" else GPU_BLOCK_BYTES


def _attention(query: Tensor, key: Tensor, norm: Tensor | None, block_bytes: int | None, per_head: bool) -> Tensor:
    """Attention summed over the queries: float32 [..., G, R, L], or [..., G, 1, L] of the heads' highest logits."""
    check_shapes(query, key)
    norm = key_norms(key) if norm is None else norm
    block_bytes = _default_block_bytes(key) if block_bytes is None else block_bytes
    num_groups, length, channels = key.shape[-3:]
    num_queries = query.shape[-2]
    queries, keys = query.unflatten(-3, (num_groups, -1)).flatten(0, -4), key.flatten(0, -3)  # [N, R, Q, E], [N, L, E]
    bytes_a_query = 4 * queries.shape[1] * (length + channels)  # its logits, and itself in float32
    queries_a_block = min(num_queries, max(1, block_bytes // bytes_a_query))
    heads_a_block = max(1, block_bytes // (queries_a_block * bytes_a_query + 4 * length * channels))

    size = (len(keys), queries.shape[1] if per_head else 1, length)
    total = torch.zeros(size, dtype=torch.float32, device=key.device)
    parts = (tensor.split(heads_a_block) for tensor in (queries, keys, norm.flatten(0, -2) == 0, total))
    for own_queries, own_keys, unusable, sums in zip(*parts, strict=True):
        given = own_keys.masked_fill(unusable[..., None], 0.0)
        given = given if _multiplies_into_float32(given) else given.float()
        hidden = torch.zeros_like(unusable, dtype=torch.float32).masked_fill_(unusable, -math.inf)
        for block in own_queries.split(queries_a_block, dim=2):
            sums += _summed_attention(block, given.transpose(1, 2), hidden, per_head)
    return total.unflatten(0, key.shape[:-2])


def _summed_attention(queries: Tensor, transposed: Tensor, hidden: Tensor, per_head: bool) -> Tensor:
    """Queries [N, R, Q, E], keys [N, E, L] and what to add to logits [N, L] -> attention summed over Q: [N, R, L] or
    [N, 1, L]."""
    flat = queries.flatten(1, 2)
    if _multiplies_into_float32(transposed):
        logits = torch.bmm(flat.to(transposed.dtype), transposed, out_dtype=torch.float32)
    else:
        logits = torch.bmm(flat.float(), transposed)
    logits = logits.unflatten(1, queries.shape[1:3])
    if not per_head:
        by_head = logits.unbind(1)
        logits = reduce(lambda highest, other: torch.maximum(highest, other, out=highest), by_head)[:, None]
    torch.add(hidden[:, None, None], logits, alpha=1 / math.sqrt(queries.shape[-1]), out=logits)
    return torch.softmax(logits, dim=-1, out=logits).sum(-2)


def _multiplies_into_float32(keys: Tensor) -> bool:
    """Whether a product need not convert them first: what two numbers of 16 bits give is exact in float32, in which
    tensor cores add up."""
    return keys.is_cuda and keys.dtype in (torch.bfloat16, torch.float16)


def _summed_cosines(keys: Tensor, inverse: Tensor) -> Tensor:
    """Keys [N, L, E] and their inverse norms [N, L], 0 for unusable ones -> sum of cosines to all keys: [N, L]."""
    finite = keys.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).float()
    sum_of_units = torch.bmm(inverse[:, None], finite)
    return torch.bmm(finite, sum_of_units.transpose(1, 2))[..., 0] * inverse


def check_pool(pool_kernel: int) -> None:
    """Refuse a width of a pool that has no middle. Raises ValueError."""
    if not (is_count(pool_kernel) and pool_kernel % 2):
        raise ValueError(f"pool_kernel={pool_kernel!r} must be an odd whole number of at least 1")


def check_shapes(query: Tensor, key: Tensor) -> None:
    """Refuse queries that are not [..., H, Q, E] to keys [..., G, L, E]. Raises ValueError."""
    fits = query.ndim == key.ndim >= 3 and query.shape[:-3] == key.shape[:-3] and query.shape[-1] == key.shape[-1]
    if not fits or query.shape[-3] % key.shape[-3] or not query.shape[-2] or not key.shape[-2]:
        raise ValueError(
            f"queries {list(query.shape)} and keys {list(key.shape)} do not belong together: expected [..., H, Q, E] "
            "and [..., G, L, E] with H a multiple of G, at least one query and one key, and everything else equal"
        )
