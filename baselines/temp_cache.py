"""TempCache (arXiv 2602.01801), as we read the paper, which has no code: keys that come again in later frames are merged.

Softmax sums m equal keys to one that adds log m to its logit, with the mean of their values (Lemma 5.1): nothing is lost.
Near duplicates are merged in the order of their likeness, so many as the budget asks for: each key into the one of a later
frame that is nearest to it, and where that is merged itself, on with it. Of a group the latest key stays, with its time;
the paper finds it to recall more of the attention than the mean or the medoid.

A key carries its time in its rotation, so that the same content is never the same key in two frames. The paper does not
say what it does about that; here keys are compared as if all stood at one time.

Shape letters: G key-value heads, L keys, K kept, E channels a head, N rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowcache.kv.select.base import Entries, KeySelector, Selection, keep_best
from flowcache.kv.select.by_score import key_mask
from flowcache.options import is_count, is_number

BLOCK_BYTES = 16 * 2**20


@dataclass(kw_only=True)
class TempCache(KeySelector):
    """Attributes."""

    biases: ClassVar[bool] = True
    threshold: float = 0.9
    sink_frames: int = 0
    euclid: bool = False
    undone: bool = True
    drop: str = "old"

    def select(self, entries: Entries, budget: int) -> Selection:
        length, sink = entries.key.shape[-2], self.sink_frames * entries.tokens_per_frame
        usable = key_mask(entries.key)
        if budget >= length:
            return keep_best(usable, budget)._replace(bias=entries.bias)
        likeness, later = self.later(entries, usable)
        likeness[..., :sink] = -torch.inf
        unneeded = length - budget - usable.isinf().sum(-1, keepdim=True)
        rank = likeness.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        merged = (rank < unneeded) & (likeness >= self.threshold)
        import os
        if os.environ.get("SAY"):
            print(entries.layer, length, budget, merged.sum(-1).tolist(), unneeded.flatten().tolist(), likeness.quantile(torch.tensor([.1,.25,.5,.75,.9]), dim=-1).mean(-1).flatten().tolist())
        count = torch.ones_like(likeness) if entries.bias is None else entries.bias.exp().round()
        slots = torch.arange(length, device=usable.device).expand(usable.shape)
        root = torch.where(merged, later, slots)
        for _ in range(length.bit_length()):
            root = root.gather(-1, root)
        total = torch.zeros_like(count).scatter_add_(-1, root, count)
        score = slots.float() if self.drop == "old" else total + slots / length if self.drop == "few" else None
        if self.drop == "far":
            score = -likeness.nan_to_num(neginf=-2.)
        if self.drop == "attn":
            from flowcache.kv.select.scores import importance
            score = importance(entries.query, entries.key, 1) * total
        score = score.clone()
        score[..., :sink] = 1e30
        chosen = keep_best((score + usable).masked_fill(merged, -torch.inf), budget)
        index = root[..., None].expand(entries.value.shape)
        share = (count / total.gather(-1, root))[..., None]
        mean = torch.zeros(entries.value.shape, device=share.device).scatter_add_(-2, index, share * entries.value)
        kept = chosen.indices[..., None].expand(*chosen.indices.shape, mean.shape[-1])
        return chosen._replace(bias=total.gather(-1, chosen.indices).log(), value=mean.gather(-2, kept))

    def later(self, entries, usable):
        rotary = entries.rotary
        if self.undone:
            rotary = replace(rotary, space=torch.zeros_like(rotary.space))
        else:
            rotary = replace(rotary, space=torch.zeros_like(rotary.space), time=torch.zeros_like(rotary.time))
        likeness, later = [], []
        frames = entries.position // entries.tokens_per_frame
        for key, frame, own in zip(entries.key.flatten(0, -3), frames.flatten(0, -2), usable.flatten(0, -2)):
            flat = torch.view_as_real(rotary.turned_back(key, frame, torch.zeros_like(frame))).flatten(-2)
            if self.euclid:
                sq = flat.square().sum(-1)
                near = flat @ flat.mT * 2 - sq[None]
            else:
                flat = F.normalize(flat, dim=-1)
                near = flat @ flat.mT
            near = near.masked_fill((frame[None] <= frame[:, None]) | own.isinf(), -torch.inf)
            best, at = near.max(-1)
            if self.euclid:
                other = sq[at]
                best = (best + other) / (sq + other)
            likeness.append(best.masked_fill(own.isinf(), -torch.inf))
            later.append(at)
        return tuple(torch.stack(x).unflatten(0, entries.key.shape[:-2]) for x in (likeness, later))

    def least_tokens(self, f, c):
        return (self.sink_frames + 1) * f
