"""TempCache (arXiv 2602.01801), our reading of the paper, which has no code: keys that come again later are merged.

For softmax m equal keys are as one with the mean of their values and log m added to its logit (the paper's Lemma 5.1).
Of keys that are nearly equal the most alike are merged first, and no more than the budget asks for: each into the key
of a later frame that is nearest to it, and where that is merged too, on with it. So a group is what corresponds from
frame to frame; its latest key stays, which recalls more attention than the mean of them would (paper).

Not in the paper, and ours:
- A key carries its time in its rotation, so that what stands still has another key in every frame. Keys are compared as
  if all were of one time; where they stand in a frame is left in.
- The paper searches in 8 bits or by hashing, here the search is exact, a block of rows at a time.
- Nearest is by distance and not by angle: parallel keys of other lengths are not equal.
- What the threshold leaves over the budget is dropped, the oldest first.

Shape letters: ``...`` any leading dimensions, G key-value heads, L keys, K kept keys, E channels a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.kv.select.base import Entries, KeySelector, Selection, keep_best
from flowcache.kv.select.by_score import key_mask
from flowcache.options import is_count, is_number

ROWS_A_BLOCK = 256  # keys compared with all later ones at a time: 256 * L numbers exist at once


@dataclass(kw_only=True)
class TempCache(KeySelector):
    """Attributes.

    threshold: least likeness of keys that are merged, -1 to below 1: 2 a.b / (a.a + b.b), which is 1 for equal keys
        alone and the cosine of keys of one length. At -1 everything is merged that is met again.
    sink_frames: latent frames at the beginning that always stay, unmerged.
    """

    biases: ClassVar[bool] = True
    threshold: float = 0.9
    sink_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.threshold) and -1 <= self.threshold < 1):
            raise ValueError(f"threshold={self.threshold!r} must be a number from -1 (merges all it can) to below 1")
        if not is_count(self.sink_frames, least=0):
            raise ValueError(f"sink_frames={self.sink_frames!r} must be a whole number of latent frames, at least 0")

    def least_tokens(self, tokens_per_frame: int, tokens_per_chunk: int) -> int:
        return self.sink_frames * tokens_per_frame + 1

    def select(self, entries: Entries, budget: int) -> Selection:
        length, sink = entries.key.shape[-2], self.sink_frames * entries.tokens_per_frame
        usable = key_mask(entries.key)
        if budget >= length:
            return keep_best(usable, budget)._replace(bias=entries.bias)
        likeness, later = self.correspondence(entries)
        likeness[..., :sink] = -torch.inf
        too_many = length - budget - usable.isinf().sum(-1, keepdim=True)  # unusable keys go before any is merged
        rank = likeness.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        merged = (rank < too_many) & (likeness >= self.threshold)

        slots = torch.arange(length, device=usable.device).expand(usable.shape)
        into = torch.where(merged, later, slots)
        for _ in range(length.bit_length()):  # each time twice as far along a chain of merged keys
            into = into.gather(-1, into)
        count = torch.ones_like(usable) if entries.bias is None else entries.bias.exp().round()
        total = torch.zeros_like(count).scatter_add_(-1, into, count)
        share = count / total.gather(-1, into)  # exactly 1 of a key that stays alone, whose value stays as it is
        target = into[..., None].expand(entries.value.shape)
        value = torch.zeros(entries.value.shape, dtype=torch.float32, device=share.device)
        value.scatter_add_(-2, target, share[..., None] * entries.value)

        age = torch.where(slots < sink, slots + length, slots) + usable  # entries stand by position
        chosen = keep_best(age.masked_fill(merged, -torch.inf), budget)
        kept = chosen.indices[..., None].expand(*chosen.indices.shape, value.shape[-1])
        return chosen._replace(bias=total.gather(-1, chosen.indices).log(), value=value.gather(-2, kept))

    def correspondence(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Of every key: its likeness to the nearest one of a later frame, float32 [..., G, L], and which that is, int64
        [..., G, L]; -inf where no later frame has a usable key, or this one is not."""
        usable = key_mask(entries.key)
        still = replace(entries.rotary, space=torch.zeros_like(entries.rotary.space))  # turns back time alone
        frames = entries.position // entries.tokens_per_frame
        found = []
        # A head at a time: its keys as complex numbers take no more than themselves in float32.
        parts = (entries.key.flatten(0, -3), frames.flatten(0, -2), usable.flatten(0, -2))
        for key, frame, mask in zip(*parts, strict=True):
            finite = key.float().masked_fill(mask.isinf()[:, None], 0.0)
            turned = still.turned_back(finite, frame, torch.zeros_like(frame))
            found.append(_nearest_later(torch.view_as_real(turned).flatten(-2), frame, mask))
        likeness, later = (torch.stack(each).unflatten(0, usable.shape[:-1]) for each in zip(*found, strict=True))
        return likeness, later

    def flops(self, num_heads: int, num_groups: int, channels: int, num_queries: int, length: int) -> int:
        pairs = sum((rows.stop - rows.start) * (length - rows.start) for rows in _blocks(length))
        return 2 * num_groups * pairs * (channels + 1)


def _nearest_later(key: Tensor, frame: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of one head's keys [L, E] in ascending frames [L]: likeness [L] and index [L] of the nearest of a later frame.
    ``mask`` [L] is 0, or -inf for keys that are not to be compared."""
    square = key.square().sum(-1)
    # 2 a.b - b.b is largest where b is nearest to a; the channel more spares a pass over all pairs.
    left, right = torch.cat([2 * key, -torch.ones_like(square)[:, None]], -1), torch.cat([key, square[:, None]], -1)
    likeness, later = torch.empty_like(square), torch.empty_like(square, dtype=torch.int64)
    for rows in _blocks(len(key)):
        near = left[rows] @ right[rows.start :].mT
        near += mask[rows.start :]
        near.masked_fill_(frame[rows.start :] <= frame[rows, None], -torch.inf)
        best, index = near.max(-1)
        later[rows] = index + rows.start
        other = square[later[rows]]
        likeness[rows] = (best + other) / (square[rows] + other)
    return likeness + mask, later


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, ROWS_A_BLOCK):
        yield slice(start, min(start + ROWS_A_BLOCK, length))
