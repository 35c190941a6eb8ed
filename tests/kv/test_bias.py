"""What selections add to logits: a merged key's weight, and heads that keep fewer keys than others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from flowcache.kernels import set_kernels
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import Entries, KeySelector, Selection
from flowcache.sampler import sample
from tests.methods import vanilla
from tests.models import magi_goldens, skyreels_goldens

QUERY = torch.ones(1, 2, 1, 4)  # of stores that correct nothing
GOLDENS = pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])


@dataclass(kw_only=True)
class Newest(KeySelector):
    """The newest keys, at a logit bias by slot; the first slots of odd heads are left empty."""

    biases: ClassVar[bool] = True
    bias: float = 0.0
    empty: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[Entries] = []

    def select(self, entries: Entries, budget: int) -> Selection:
        self.seen.append(entries)
        heads, length = entries.key.shape[:-2], entries.key.shape[-2]
        indices = torch.arange(length - budget, length).expand(*heads, -1)
        bias = torch.full((*heads, budget), self.bias)
        bias[:, 1::2, : self.empty] = -math.inf
        return Selection(indices, torch.zeros(heads, dtype=torch.int64), bias)


@dataclass(kw_only=True)
class NewestPlain(Newest):
    """The same without any bias."""

    biases: ClassVar[bool] = False

    def select(self, entries: Entries, budget: int) -> Selection:
        return super().select(entries, budget)._replace(bias=None)


def compressed(select: KeySelector) -> KvCache:
    """Four chunks of six keys, of which the first three are compressed to seven."""
    cache = KvCache(1, 2, 4, 6, 5, policy=KvPolicy(select=select, budget="7 tokens"), budget=Budget(7, 30, 2))
    keys = torch.randn(1, 2, 24, 4, generator=torch.Generator().manual_seed(0))
    for chunk, part in enumerate(keys.split(6, dim=2)):
        cache.write(0, chunk, part, part)
    cache.begin_compression(3)
    cache.score(0, torch.ones(1, 2, 6, 4))
    return cache


def test_the_mask_adds_to_kept_keys_and_nothing_to_those_behind():
    mask = compressed(Newest(bias=0.5, empty=2)).mask(0, 0, 3, QUERY)
    assert mask.shape == (1, 2, 1, 13)
    assert mask[0, 0, 0].tolist() == [0.5] * 7 + [0.0] * 6
    assert mask[0, 1, 0].tolist() == [-math.inf] * 2 + [0.5] * 5 + [0.0] * 6


def test_chunks_out_of_reach_are_masked_beside_the_bias():
    mask = compressed(Newest(bias=0.5)).mask(0, 2, 3, QUERY)  # kept: positions 11 to 17; chunk 2 begins at 12
    assert mask[0, 0, 0].tolist() == [-math.inf] + [0.5] * 6 + [0.0] * 6


def test_the_next_selection_sees_what_the_last_one_added():
    select = Newest(bias=0.5, empty=1)
    cache = KvCache(1, 2, 4, 6, 5, policy=KvPolicy(select=select, budget="7 tokens"), budget=Budget(7, 30, 2))
    cache._select = select
    for chunk in range(4):
        cache.write(0, chunk, *torch.zeros(2, 1, 2, 6, 4))
    for end in (3, 4):
        cache.begin_compression(end)
        cache.score(0, torch.ones(1, 2, 6, 4))
    first, second = select.seen
    assert not first.bias.any()
    assert second.bias[0, 0].tolist() == [0.5] * 7 + [0.0] * 6
    assert second.bias[0, 1, 0] == -math.inf
    assert second.position[0, 0].tolist() == list(range(11, 24))


@GOLDENS
def test_a_bias_of_zero_changes_nothing_but_the_kernel(goldens):
    ours, plain = (
        torch.cat([latent for _, latent in sample(goldens.small_generation(vanilla_kv(select), num_chunks=5))], dim=1)
        for select in (Newest(), NewestPlain())
    )
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


@GOLDENS
def test_heads_may_keep_fewer_than_others(goldens):
    whole, fewer = (
        torch.cat([latent for _, latent in sample(goldens.small_generation(vanilla_kv(select), num_chunks=5))], dim=1)
        for select in (Newest(), Newest(empty=3))
    )
    assert fewer.isfinite().all()
    assert not torch.allclose(whole, fewer, atol=1e-5)


def test_a_kernel_that_takes_no_bias_is_refused_before_any_work():
    dit = magi_goldens.golden_dit("mlp_base")
    set_kernels(dit, "flash")
    try:
        with pytest.raises(
            ValueError, match="Newest adds to keys' logits, which attention_backend=flash does not take"
        ):
            magi_goldens.small_generation(vanilla_kv(Newest()), dit=dit)
    finally:
        set_kernels(dit)


def vanilla_kv(select: KeySelector):
    return vanilla(attention="cached", budget="1 chunk", select=select)
