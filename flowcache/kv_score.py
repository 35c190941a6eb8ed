"""Which keys a compressed KV cache keeps: importance, redundancy, their joint score, and selection under a budget.

Joint importance-redundancy compression (FlowCache, arXiv 2602.10825, its section on KV cache compression;
mikeallen39/FlowCache: inference/pipeline/kvcompress/kv_compressor.py), after R-KV (Zefan-Cai/R-KV). Pure functions of
tensors: everything stays on the device of the keys, nothing waits for it, no matrix of L x L or of all queries x L
exists whole, and scores are float32 whatever the type of the keys.

Shape letters: ``...`` any leading dimensions (layers, branches, batch), scored side by side; H query heads, G key-value
heads, R = H/G query heads that share one (query head h belongs to key-value head h // R), Q queries, L keys, E channels
a head, K kept keys.

A key without direction - zero, or with a norm that is NaN or infinite in float32 - is *unusable*: it takes no part in
the scores of other keys and is kept last. Where the budget leaves no choice, ``Selection.unusable`` counts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Unit = Literal["token", "frame", "chunk"]
Weighting = Literal["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]
KeptOrder = Literal["position", "score"]
Timing = Literal["sound", "published"]

LAST_QUERIES = 50  # what the published "token" query granularity means
# On a CPU a block fits its cache, and malloc keeps its memory instead of giving it back: 64 MiB take 1.5 times as
# long. A GPU wants few, large launches.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 16 * 2**20, 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How a full cache chooses what to keep.

    Attributes:
        mix_lambda: weight of importance against redundancy, 0 (redundancy only) to 1 (importance only).
        pool_kernel: width of the max-pool over neighbouring keys' importance, odd; 1 pools nothing.
        selection: keep the best single tokens, whole frames or whole chunks.
        query_granularity: queries that importance averages over: all of the "chunk", its last "frame", its last 50
            ("token"), or its last so many.
        weighting: preference by position, see ``position_weights``; "hard_code" gives up the first chunk first.
        power: exponent of the two polynomial weightings.
        kept_order: kept keys stand by "position", or by "score" as published (fidelity row 12: the next round's
            max-pool then mixes keys that were no neighbours).
        timing: when, and by whose queries (rows 11 and 14). "sound": in the first row that computes after finished
            chunks whose keys are final hold more than the budget, before it attends, by the newest chunk computed in
            it. "published" on MAGI-1: after the row, and only while chunks are still to come that need the room, by
            the newest chunk of the last forward, however old; on SkyReels-V2: already in the row that finishes the
            chunk, before the chunks computed after it attend.
    """

    mix_lambda: float = 0.07
    pool_kernel: int = 7
    selection: Unit = "token"
    query_granularity: Unit | int = "chunk"
    weighting: Weighting = "no_weight"
    power: float = 3.0
    kept_order: KeptOrder = "position"
    timing: Timing = "sound"

    def __post_init__(self) -> None:
        if not (_is_number(self.mix_lambda) and 0 <= self.mix_lambda <= 1):
            raise ValueError(
                f"mix_lambda={self.mix_lambda!r} must lie between 0 (redundancy only) and 1 (importance only)"
            )
        _check_pool(self.pool_kernel)
        if not (_is_number(self.power) and 0 < self.power < math.inf):
            raise ValueError(f"power={self.power!r} must be a finite number above 0")
        named = {"selection": Unit, "weighting": Weighting, "kept_order": KeptOrder, "timing": Timing}
        for name, choices in named.items():
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(map(repr, get_args(choices)))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {known}")
        if self.query_granularity not in get_args(Unit) and not _is_count(self.query_granularity):
            raise ValueError(
                f"query_granularity={self.query_granularity!r} is unknown; choose 'token' (the last {LAST_QUERIES}), "
                "'frame', 'chunk' or a whole number of queries of at least 1"
            )

    def num_queries(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        """How many of a chunk's last queries importance needs. Raises ValueError for more than a chunk has."""
        named = {"token": min(LAST_QUERIES, tokens_per_chunk), "frame": tokens_per_frame, "chunk": tokens_per_chunk}
        count = named.get(self.query_granularity, self.query_granularity)
        if count > tokens_per_chunk:
            raise ValueError(
                f"query_granularity={count} is more than the {tokens_per_chunk} queries of a chunk; "
                f"choose 1 to {tokens_per_chunk}, or 'chunk'"
            )
        return count

    def unit_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        """Tokens that are kept or dropped together."""
        return {"token": 1, "frame": tokens_per_frame, "chunk": tokens_per_chunk}[self.selection]


class Selection(NamedTuple):
    """What to keep.

    indices: int64 [..., G, K], unique, below L, in the order in which the kept keys are to stand.
    unusable: int64 [..., G], how many of them are kept only because the budget leaves nothing better. Above 0 the keys
        (or the queries) hold NaN, infinity or zeros: report it wherever the host reads results anyway.
    """

    indices: Tensor
    unusable: Tensor


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
    _check_shapes(query, key)
    _check_pool(pool_kernel)
    norm = key_norms(key) if norm is None else norm
    block_bytes = _default_block_bytes(key) if block_bytes is None else block_bytes
    num_groups, length, channels = key.shape[-3:]
    num_queries = query.shape[-2]
    queries, keys = query.unflatten(-3, (num_groups, -1)).flatten(0, -4), key.flatten(0, -3)  # [N, R, Q, E], [N, L, E]
    bytes_a_query = 4 * queries.shape[1] * (length + 2 * channels)  # its logits, and itself in float32 and scaled
    queries_a_block = min(num_queries, max(1, block_bytes // bytes_a_query))
    heads_a_block = max(1, block_bytes // (queries_a_block * bytes_a_query + 4 * length * channels))

    total = torch.zeros(keys.shape[:2], dtype=torch.float32, device=key.device)
    parts = (tensor.split(heads_a_block) for tensor in (queries, keys, norm.flatten(0, -2) == 0, total))
    for own_queries, own_keys, unusable, sums in zip(*parts, strict=True):
        transposed = own_keys.float().transpose(1, 2)
        for block in own_queries.split(queries_a_block, dim=2):
            sums += _summed_attention(block, transposed, unusable)
    total /= num_queries
    pooled = F.max_pool1d(total, pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.unflatten(0, key.shape[:-2])


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


def token_scores(query: Tensor, key: Tensor, config: CompressionConfig, tokens_per_chunk: int) -> Tensor:
    """Joint score of every key: float32 [..., G, L], the higher the better, -inf for unusable keys.

    lambda * importance - (1 - lambda) * redundancy (paper, Score). A weighting first shifts each head's scores to a
    minimum of 0, then multiplies them; "hard_code" ranks the first ``tokens_per_chunk`` keys behind all others, in
    their own order (the published penalty of 1e6 rounds that order away).
    """
    norm = key_norms(key)
    unusable = norm == 0
    score = config.mix_lambda * importance(query, key, config.pool_kernel, norm)
    score -= (1 - config.mix_lambda) * redundancy(key, norm)
    if config.weighting != "no_weight":
        score -= score.masked_fill(unusable, math.inf).amin(-1, keepdim=True)
        if config.weighting == "hard_code":
            score[..., :tokens_per_chunk] -= 2.0  # scores span at most lambda + (1 - lambda) = 1
        else:
            score *= position_weights(config.weighting, score.shape[-1], config.power, score.device)
    return score.masked_fill_(unusable, -math.inf)


def select(score: Tensor, budget: int, unit_tokens: int = 1, kept_order: KeptOrder = "position") -> Selection:
    """Keep the ``budget`` best of L keys, in whole units of consecutive keys.

    A unit's score is the mean of its keys', so that one unusable key ranks its unit last. NaN ranks as -inf. A budget
    of L or more keeps every key in its place, whatever the order asked for.

    Args:
        score: float [..., L].
        budget: keys to keep, at least one unit.
        unit_tokens: keys of a unit.
        kept_order: "position" is ascending; "score" puts the best unit first, its keys ascending.

    Raises ValueError for a budget below one unit, and for a length or budget that is not whole units.
    """
    length = score.shape[-1]
    if budget >= length:
        indices = torch.arange(length, device=score.device).expand(score.shape)
        return Selection(indices, (~score.isfinite()).sum(-1))
    if length % unit_tokens:
        raise ValueError(f"{length} keys are not whole units of {unit_tokens} tokens; select by 'token' instead")
    if budget < unit_tokens or budget % unit_tokens:
        nearest = max(1, round(budget / unit_tokens)) * unit_tokens
        raise ValueError(
            f"a budget of {budget} tokens is not a whole number of units of {unit_tokens} tokens, at least one; "
            f"the nearest is {nearest}"
        )
    score = score.masked_fill(score.isnan(), -math.inf)
    units = score.unflatten(-1, (-1, unit_tokens)).mean(-1) if unit_tokens > 1 else score
    kept = units.topk(budget // unit_tokens, sorted=kept_order == "score").indices
    if kept_order == "position":
        kept = kept.sort().values
    indices = (kept[..., None] * unit_tokens + torch.arange(unit_tokens, device=score.device)).flatten(-2)
    return Selection(indices, (~score.gather(-1, indices).isfinite()).sum(-1))


def select_keys(
    query: Tensor, key: Tensor, budget: int, config: CompressionConfig, tokens_per_frame: int, tokens_per_chunk: int
) -> Selection:
    """Which of L keys to keep, for every layer, batch entry and key-value head on its own.

    Args:
        query: [..., H, Q, E] of the chunk being denoised, in the layers of the keys; the last
            ``config.num_queries(...)`` of them count.
        key: [..., G, L, E], clean keys in the order in which they stand.
        budget: tokens to keep of every head; L or more keeps all without scoring.
        config: how to choose.
        tokens_per_frame, tokens_per_chunk: what "frame" and "chunk" mean.
    """
    num_queries = config.num_queries(tokens_per_frame, tokens_per_chunk)
    if query.shape[-2] < num_queries:
        raise ValueError(
            f"query_granularity={config.query_granularity!r} needs {num_queries} queries, got {query.shape[-2]}"
        )
    _check_shapes(query, key)
    if budget >= key.shape[-2]:
        return select(key_norms(key).log(), budget)  # -inf for unusable keys, and all that is asked of a score here
    score = token_scores(query[..., -num_queries:, :], key, config, tokens_per_chunk)
    return select(score, budget, config.unit_tokens(tokens_per_frame, tokens_per_chunk), config.kept_order)


def scoring_flops(num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
    """Operations of ``token_scores`` in one layer, matrix products only, multiply-add = 2."""
    attention = num_heads * num_queries * length * channels + num_groups * num_queries * length
    return 2 * (attention + 2 * num_groups * length * channels)


def _default_block_bytes(key: Tensor) -> int:
    return CPU_BLOCK_BYTES if key.device.type == "cpu" else GPU_BLOCK_BYTES


def _summed_attention(queries: Tensor, transposed: Tensor, unusable: Tensor) -> Tensor:
    """Queries [N, R, Q, E], keys [N, E, L] and which not to attend to [N, L] -> attention summed over Q: [N, L]."""
    scaled = queries.float().flatten(1, 2) / math.sqrt(queries.shape[-1])
    by_head = torch.bmm(scaled, transposed).unflatten(1, queries.shape[1:3]).unbind(1)
    logits = reduce(lambda highest, other: torch.maximum(highest, other, out=highest), by_head)
    logits.masked_fill_(unusable[:, None], -math.inf)
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return torch.bmm(1 / weights.sum(-1)[:, None], weights)[:, 0]


def _summed_cosines(keys: Tensor, inverse: Tensor) -> Tensor:
    """Keys [N, L, E] and their inverse norms [N, L], 0 for unusable ones -> sum of cosines to all keys: [N, L]."""
    finite = keys.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).float()
    sum_of_units = torch.bmm(inverse[:, None], finite)
    return torch.bmm(finite, sum_of_units.transpose(1, 2))[..., 0] * inverse


def _check_pool(pool_kernel: int) -> None:
    if not (_is_count(pool_kernel) and pool_kernel % 2):
        raise ValueError(f"pool_kernel={pool_kernel!r} must be an odd whole number of at least 1")


def _check_shapes(query: Tensor, key: Tensor) -> None:
    fits = query.ndim == key.ndim >= 3 and query.shape[:-3] == key.shape[:-3] and query.shape[-1] == key.shape[-1]
    if not fits or query.shape[-3] % key.shape[-3] or not query.shape[-2] or not key.shape[-2]:
        raise ValueError(
            f"queries {list(query.shape)} and keys {list(key.shape)} do not belong together: expected [..., H, Q, E] "
            "and [..., G, L, E] with H a multiple of G, at least one query and one key, and everything else equal"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
