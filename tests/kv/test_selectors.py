"""What every selector that conf/kv has a file of promises: any sizes, heads by themselves, generations apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.flops import ExecutedFlops, check
from flowcache.kv.select.base import Entries, KeySelector
from flowcache.kv.store.base import StoreShape
from flowcache.models.wan.rotary import rotary_pairs
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.experiments.conf_parts import CHOICES, part
from tests.methods import vanilla
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

NAMES = sorted(name for name in set(CHOICES["kv"]) - {"full"} if not part("kv", name).kv.select.by_head)
HEADS_ALIKE = {"tova"}  # whose heads decide together


def selector(name: str, **options: Any) -> KeySelector:
    """At its own options but for those given that it has."""
    select = part("kv", name).kv.select
    return replace(select, **{f.name: options[f.name] for f in fields(select) if f.name in options})


def entries(
    select: KeySelector, heads: int, groups: int, frame: int, frames: int, chunks: int, seed: int = 0
) -> Entries:
    """Of ``chunks`` chunks of ``frames`` frames of ``frame`` tokens, some of them dropped before."""
    draw, chunk = torch.Generator().manual_seed(seed), frame * frames
    length = chunk * chunks
    key, value = torch.randn(2, 1, groups, length, 8, generator=draw)
    query = select.queries(torch.randn(1, heads, chunk, 8, generator=draw), frame)
    position = torch.arange(length, dtype=torch.int32).expand(1, groups, -1) + seed % 3 * chunk
    stands = chunk * (chunks + seed % 3) + select.queries(torch.arange(chunk)[:, None], frame)[:, 0]
    rotary = rotary_pairs(8, 1, frame, "cpu")
    made = Entries(query, key, value, position, None, 1, frame, chunk, None, stands, rotary)
    return observed(select, made)


def observed(select: KeySelector, made: Entries) -> Entries:
    """As if nothing had been before."""
    heads = made.key.shape[1]
    select.allocate(StoreShape(2, 1, heads, made.key.shape[-2], 8, torch.float32, "cpu"))
    return replace(made, observed=select.observe(made)) if select.observes else made


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", NAMES)
def test_any_budget_of_any_size_is_met_with_distinct_keys_sinks_and_newest_among_them(name, data):

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, frame, frames, chunks = draw(1, 3), draw(1, 5), draw(1, 3), draw(2, 4)
    options = {
        "selection": data.draw(st.sampled_from(["token", "frame", "chunk"])),
        "sink_frames": draw(0, frames),
        "recent_share": data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.99])),
        "window": data.draw(st.sampled_from([None, 1, 2, 100])),
        "window_over": data.draw(st.sampled_from(["frame", "chunk"])),
    }
    select = selector(name, **options)
    given_ = entries(select, groups * draw(1, 2), groups, frame, frames, chunks, draw(0, 9))
    length, chunk = given_.key.shape[-2], frame * frames
    unit, least = select.unit_tokens(frame, chunk), select.least_tokens(frame, chunk)
    assert least % unit == 0
    budgets = range(least, length, unit)
    if not budgets:
        return
    budget = data.draw(st.sampled_from(budgets))
    chosen = select.select(given_, budget)
    assert chosen.indices.shape == (1, groups, budget)
    kept = chosen.indices[0]
    assert (kept[:, 1:] > kept[:, :-1]).all()  # distinct, and by position
    assert 0 <= kept.min() <= kept.max() < length
    assert not chosen.unusable.any()
    sink = getattr(select, "sink_frames", 0) * frame
    assert (kept[:, :sink] == torch.arange(sink)).all()
    recent = int(getattr(select, "recent_share", 0.0) * (budget - -(-sink // unit) * unit)) // frame * frame
    recent -= recent % max(unit, frame)
    assert (kept[:, budget - recent :] == torch.arange(length - recent, length)).all()
    whole = kept.unflatten(-1, (-1, unit))
    assert (whole == whole[..., :1] + torch.arange(unit)).all()
    assert (whole[..., 0] % unit == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_heads_permutes_what_they_keep(name):
    select = selector(name)
    made = entries(select, heads=6, groups=3, frame=4, frames=3, chunks=3)
    budget, order = max(select.least_tokens(4, 12), 16), torch.tensor([2, 0, 1])
    queries = made.query.unflatten(1, (3, 2))[:, order].flatten(1, 2)
    moved = replace(made, query=queries, key=made.key[:, order], value=made.value[:, order])
    kept = select.select(made, budget).indices
    anew = select.fresh()
    permuted = anew.select(observed(anew, moved), budget).indices
    assert torch.equal(permuted, kept[:, order])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_head_keeps_is_its_own_affair(name):
    """But for a selector whose heads decide together, which then keep the same."""
    select = selector(name)
    made = entries(select, heads=4, groups=2, frame=4, frames=3, chunks=3)
    key = made.key.clone()
    key[:, 1] = torch.randn(key[:, 1].shape, generator=torch.Generator().manual_seed(5)) * 3
    other = replace(made, key=key)
    before = select.select(made, 16).indices
    anew = select.fresh()
    after = anew.select(observed(anew, other), 16).indices
    if name in HEADS_ALIKE:
        assert torch.equal(after[:, 0], after[:, 1])
    else:
        assert torch.equal(before[:, 0], after[:, 0])


@pytest.mark.parametrize("unusable", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"sink_recent", "uniform", "random"}))
def test_a_key_that_nothing_can_be_said_about_goes_first_and_is_told_where_it_must_stay(name, unusable):
    select = selector(name, recent_share=0.0)
    made = entries(select, heads=4, groups=2, frame=4, frames=3, chunks=3)
    made.key[:, :, 5:9] = unusable
    select = select.fresh()
    made = observed(select, made)
    without = select.select(made, 32)
    assert not without.unusable.any()
    assert not torch.isin(without.indices, torch.arange(5, 9)).any()
    assert select.select(made, 34).unusable.tolist() == [[2, 2]]


SMALL = {
    "magi": lambda method: magi_goldens.small_generation(method, num_chunks=5, num_steps=4),
    "skyreels": lambda method: skyreels_goldens.small_generation(method, num_chunks=6, num_steps=4, base_num_frames=45),
    "skyreels, windows": lambda method: skyreels_goldens.small_generation(method, num_chunks=7, num_steps=4),
    "wan": lambda method: wan_goldens.small_generation(method, num_frames=15),
}
Make = Callable[[Any], Any]


def made(name: str, budget: str, make: Make) -> Any:
    return make(vanilla(attention="cached", budget=budget, select=selector(name, sink_frames=0)))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", NAMES)
def test_a_selector_compresses_on_every_model_and_two_generations_at_once_are_as_each_alone(name, make):
    with ExecutedFlops() as executed:
        alone, trace = made(name, "1 chunk", make), Trace()
        list(sample(alone, trace, executed.clock))
    check(executed, trace)  # what choosing costs too
    assert alone.kv_compressions > 1
    assert alone.latents.isfinite().all()
    assert alone.kv_unusable_kept == 0
    looked = sum(work.kind == "compression" for _, work in trace.work)
    assert looked > alone.kv_compressions if alone.method.kv.select.observes else looked == alone.kv_compressions
    pair = [made(name, "1 chunk", make) for _ in range(2)]
    running = [sample(each) for each in pair]
    for _ in product(range(99), running):
        for each in running:
            next(each, None)
    for each in pair:
        assert torch.equal(each.latents, alone.latents)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_budget_there_is_runs(name, make):
    probe = made(name, "1 chunk", make)
    select, sizes = probe.method.kv.select, (probe.caches[0].budget.tokens_per_frame, probe.caches[0].tokens_per_chunk)
    generation = made(name, f"{select.least_tokens(*sizes)} tokens", make)
    list(sample(generation))
    assert generation.kv_compressions > 1
    assert generation.latents.isfinite().all()
    assert generation.caches[0].budget.kept == select.least_tokens(*sizes)
