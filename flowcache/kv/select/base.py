"""What a KV selector is: of finished chunks' keys it chooses those that a cache over its budget keeps.

Shape letters: ``...`` any leading dimensions (layers, branches, batch), worked on side by side; H query heads, G
key-value heads, Q queries, L keys, E channels a head, K kept keys.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.store.base import StoreShape
from flowcache.part import Part

KeptOrder = Literal["position", "score"]
Timing = Literal["sound", "published"]
Unit = Literal["token", "frame", "chunk"]  # what a selector keeps or drops as a whole


class Selection(NamedTuple):
    """What to keep.

    indices: int64 [..., G, K], unique, below L, in the order in which the kept keys are to stand.
    unusable: int64 [..., G], how many of them are kept only because the budget leaves nothing better. Above 0 the keys
        (or the queries) hold NaN, infinity or zeros: report it wherever the host reads results anyway.
    bias: float32 [..., G, K], added to the kept keys' logits from now on: the logarithm of how many keys one stands
        for, or -inf in a slot that this head leaves empty, so that heads may keep different numbers. None adds nothing.
    value: float [..., G, K, E], what the kept keys' values are from now on, where some stand for others too. None
        leaves them as they are.
    """

    indices: Tensor
    unusable: Tensor
    bias: Tensor | None = None
    value: Tensor | None = None


@dataclass(frozen=True)
class Entries:
    """What there is to choose from, of every layer, batch entry and key-value head given.

    Attributes:
        query: [..., H, Q, E], rotated as the keys are: of the chunk being denoised those that ``queries`` gave.
        key, value: [..., G, L, E], clean, in the order in which they stand.
        position: int [..., G, L], where in the video each stands, in tokens.
        bias: float32 [..., G, L], what selections before have added to their logits; None is nothing.
        layer: of the network.
        tokens_per_frame, tokens_per_chunk: what "frame" and "chunk" mean.
        observed: float32 [..., G, L], what ``observe`` gave of each key since it is final; None where it gives nothing.
        query_position: int64 [Q], where in the video the queries stand, in tokens.
        rotary: how keys and queries carry their positions.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor
    bias: Tensor | None
    layer: int
    tokens_per_frame: int
    tokens_per_chunk: int
    observed: Tensor | None = None
    query_position: Tensor | None = None
    rotary: RotaryPairs | None = None


@dataclass(kw_only=True)
class KeySelector(Part, ABC):
    """Chooses, for every layer, guidance branch, batch entry and key-value head by itself.

    Attributes:
        selects: False only for one that is there to keep everything, and takes no budget.
        by_head: it sorts heads into kinds and keeps frames, whatever the budget, see flowcache.kv.select.by_head.
        timing: when, and by whose queries (fidelity rows 11 and 14). "sound": in the first row that computes after
            finished chunks whose keys are final hold more than the budget, before it attends, by the newest chunk
            computed in it. "published" on MAGI-1: after the row, and only while chunks are still to come that need the
            room, by the newest chunk of the last forward, however old; on SkyReels-V2: already in the row that finishes
            the chunk, before the chunks computed after it attend.
        biases: its selections may carry a ``bias``, which not every attention kernel takes.
        observes: it looks in rows that compute, by ``observe``, and not only where something must go: in every
            ``look_every``-th.
        adds_up: what ``observe`` gives of each key is added up, and goes with the key.
        heads_apart: what a head keeps does not depend on other heads, so that processes may share them out.
    """

    selects: ClassVar[bool] = True
    by_head: ClassVar[bool] = False
    timing: ClassVar[Timing] = "sound"
    biases: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    look_every: ClassVar[int] = 1
    adds_up: ClassVar[bool] = False
    heads_apart: ClassVar[bool] = True

    @abstractmethod
    def select(self, entries: Entries, budget: int) -> Selection:
        """Which ``budget`` of the L keys to keep; fewer than L."""

    def allocate(self, shape: StoreShape) -> None:
        """Make the buffers of what it remembers itself, for one guidance branch."""

    @property
    def nbytes(self) -> int:
        """Allocated by it, all together."""
        return 0

    def observe(self, entries: Entries) -> Tensor | None:
        """Look at a row; one that compresses is looked at before. Who adds up gives float32 [..., G, L], which is added
        to ``Entries.observed``; the sum stays with a key for as long as it is kept."""
        raise NotImplementedError(f"{type(self).__name__} does not observe")

    def num_queries(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        """How many of a chunk's queries it looks at. Raises ValueError for more than a chunk has."""
        return 0

    def queries(self, query: Tensor, tokens_per_frame: int) -> Tensor:
        """Which they are, of all of a chunk's [..., H, T, E]: the last ones."""
        num_tokens = query.shape[-2]
        return query[..., num_tokens - self.num_queries(tokens_per_frame, num_tokens) :, :]

    def unit_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        """Tokens that are kept or dropped together; a budget is a whole number of units."""
        return 1

    def least_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        """The smallest budget that makes sense."""
        return self.unit_tokens(tokens_per_frame, tokens_per_chunk)

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        """Operations of ``select`` in one layer, matrix products only, multiply-add = 2; of one who observes those of
        ``observe``, in every row that it looks at."""
        return 0


def keep_best(score: Tensor, budget: int, unit_tokens: int = 1, kept_order: KeptOrder = "position") -> Selection:
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
