"""FlowCache's selector (arXiv 2602.10825): importance to the newest queries against redundancy among the keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from flowcache.kv.select.base import Entries, KeptOrder, KeySelector, Selection, Timing, Unit, keep_best
from flowcache.kv.select.scores import (
    Weighting,
    check_pool,
    check_shapes,
    importance,
    key_norms,
    position_weights,
    redundancy,
    scoring_flops,
)
from flowcache.options import check_choice, is_count, is_number

LAST_QUERIES = 50  # what the published "token" query granularity means


@dataclass(kw_only=True)
class Joint(KeySelector):
    """Keeps the best by lambda * importance - (1 - lambda) * redundancy (paper, Score).

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
        timing: see KeySelector.
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
        super().__post_init__()
        if not (is_number(self.mix_lambda) and 0 <= self.mix_lambda <= 1):
            raise ValueError(
                f"mix_lambda={self.mix_lambda!r} must lie between 0 (redundancy only) and 1 (importance only)"
            )
        check_pool(self.pool_kernel)
        if not (is_number(self.power) and 0 < self.power < math.inf):
            raise ValueError(f"power={self.power!r} must be a finite number above 0")
        named = {"selection": Unit, "weighting": Weighting, "kept_order": KeptOrder, "timing": Timing}
        for name, choices in named.items():
            check_choice(name, getattr(self, name), get_args(choices))
        if self.query_granularity not in get_args(Unit) and not is_count(self.query_granularity):
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

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        return scoring_flops(num_heads, num_groups, channels, num_queries, length)

    def select(self, entries: Entries, budget: int) -> Selection:
        check_shapes(entries.query, entries.key)
        num_queries = self.num_queries(entries.tokens_per_frame, entries.tokens_per_chunk)
        if entries.query.shape[-2] < num_queries:
            raise ValueError(
                f"query_granularity={self.query_granularity!r} needs {num_queries} queries, got "
                f"{entries.query.shape[-2]}"
            )
        if budget >= entries.key.shape[-2]:
            # All are kept without scoring; -inf for unusable keys is all that is asked of a score here.
            return keep_best(key_norms(entries.key).log(), budget)
        score = self.scores(entries.query[..., -num_queries:, :], entries.key, entries.tokens_per_chunk)
        unit_tokens = self.unit_tokens(entries.tokens_per_frame, entries.tokens_per_chunk)
        return keep_best(score, budget, unit_tokens, self.kept_order)

    def scores(self, query: Tensor, key: Tensor, tokens_per_chunk: int) -> Tensor:
        """Joint score of every key: float32 [..., G, L], the higher the better, -inf for unusable keys.

        lambda * importance - (1 - lambda) * redundancy (paper, Score). A weighting first shifts each head's scores to a
        minimum of 0, then multiplies them; "hard_code" ranks the first ``tokens_per_chunk`` keys behind all others, in
        their own order (the published penalty of 1e6 rounds that order away).
        """
        norm = key_norms(key)
        unusable = norm == 0
        score = self.mix_lambda * importance(query, key, self.pool_kernel, norm)
        score -= (1 - self.mix_lambda) * redundancy(key, norm)
        if self.weighting != "no_weight":
            score -= score.masked_fill(unusable, math.inf).amin(-1, keepdim=True)
            if self.weighting == "hard_code":
                score[..., :tokens_per_chunk] -= 2.0  # scores span at most lambda + (1 - lambda) = 1
            else:
                score *= position_weights(self.weighting, score.shape[-1], self.power, score.device)
        return score.masked_fill_(unusable, -math.inf)
