"""Chunks that compute in part: the same forward with fewer queries, on both models that do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baselines.sink_recent import SinkRecent
from eval.flops import ExecutedFlops, check
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.integer import Integer
from flowcache.method import Method
from flowcache.models.chunk_tokens import RunningTokens, Subset, latent_mask, latent_tokens
from flowcache.models.magi.attention import Member
from flowcache.models.magi.network import MagiDit
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.methods import by_row, method
from tests.models import magi_goldens, skyreels_goldens
from tests.models.magi_goldens import GUIDANCE_3, dit_config

MODELS = {"magi": (magi_goldens, 24), "skyreels": (skyreels_goldens, 8)}  # tokens of a small generation's chunk


def in_part(masks: Callable[[Row, int], Tensor | None], **options) -> Method:
    """Computes all chunks in all rows, after their first step those of their tokens that are given."""

    def rule(row: Row) -> Decision:
        found = {step.chunk: masks(row, step.chunk) for step in row.steps if step.step}
        return Decision(row.chunks, {chunk: mask for chunk, mask in found.items() if mask is not None})

    return by_row(rule, uses=("tokens",), **options)


def every_third(tokens: int, branches: int = 1) -> Callable[[Row, int], Tensor]:
    return lambda row, chunk: (torch.arange(tokens) % 3 == (row.index + chunk) % 3).expand(branches, -1)


@pytest.mark.parametrize("name", MODELS)
def test_all_tokens_are_the_whole_chunk_bit_for_bit(name):
    goldens, tokens = MODELS[name]
    whole = goldens.latents_of(goldens.small_generation(method(Never())))
    named = in_part(lambda row, chunk: torch.ones(1, tokens, dtype=torch.bool))
    assert torch.equal(goldens.latents_of(goldens.small_generation(named)), whole)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"forecast": Linear()}, {"forecast": Hold(quantity="clean")}])
def test_what_ran_is_counted_by_its_tokens(name, settings):
    goldens, tokens = MODELS[name]
    trace = Trace()
    with ExecutedFlops() as executed, torch.inference_mode():
        with executed.clock("text"):
            generation = goldens.small_generation(in_part(every_third(tokens), **settings))
        list(sample(generation, trace, executed.clock))
    check(executed, trace)
    parts = [entry for entry in trace.entries if entry.token_mask]
    assert {entry.token_share for entry in parts} <= {count / tokens for count in range(2, 9)}
    assert max(entry.flops for entry in parts) < min(entry.flops for entry in trace.entries if not entry.token_mask)
    assert generation.latents.isfinite().all()


def test_what_ran_is_counted_with_three_guidance_passes_too():
    """The pass that sees no history, and so no keys of the other tokens, runs the whole chunk."""
    trace, dit = Trace(), MagiDit(dit_config(num_layers=2)).eval().requires_grad_(False)
    with ExecutedFlops() as executed, torch.inference_mode():
        with executed.clock("text"):
            generation = magi_goldens.small_generation(in_part(every_third(24)), dit=dit, num_steps=4, **GUIDANCE_3)
        list(sample(generation, trace, executed.clock))
    check(executed, trace)


@pytest.mark.parametrize("name", MODELS)
def test_each_branch_may_have_its_own_tokens_and_other_chunks_and_stores_do_not_mind(name):
    goldens, tokens = MODELS[name]
    one = in_part(lambda row, chunk: every_third(tokens)(row, chunk) if chunk == 1 else None)
    stored = Method(reuse=one.reuse, kv=KvPolicy(store=Bfloat16()))
    for made in (one, stored):
        trace = Trace()
        assert goldens.latents_of(goldens.small_generation(made), trace).isfinite().all()
        assert {entry.chunk for entry in trace.entries if entry.token_mask} == {1}
    if name == "skyreels":
        apart = in_part(lambda row, chunk: torch.arange(tokens)[None] % 2 == torch.tensor([[0], [1]]))
        alike = in_part(lambda row, chunk: (torch.arange(tokens) % 2 == 0).expand(2, -1))
        made = [goldens.latents_of(goldens.small_generation(each)) for each in (apart, alike)]
        assert not torch.equal(*made)


@pytest.mark.parametrize(
    "kv",
    [KvPolicy(store=Integer(bits=2, newest_chunks=9)), KvPolicy(budget="9 chunks", select=SinkRecent())],
    ids=["codes", "budget"],
)
@pytest.mark.parametrize("name", MODELS)
def test_caches_that_hold_all_there_is_as_it_is_come_to_the_same_bit_for_bit(name, kv):
    goldens, tokens = MODELS[name]
    made = in_part(every_third(tokens))
    expected = goldens.latents_of(goldens.small_generation(made))
    assert torch.equal(goldens.latents_of(goldens.small_generation(replace(made, kv=kv))), expected)


@pytest.mark.parametrize("name", MODELS)
def test_finished_chunks_may_be_codes_or_the_few_keys_of_a_selector_that_asks_no_queries(name):
    goldens, tokens = MODELS[name]
    kv = KvPolicy(budget="1 chunk", select=SinkRecent(), store=Integer(bits=4))
    generation, trace = goldens.small_generation(replace(in_part(every_third(tokens)), kv=kv)), Trace()
    assert goldens.latents_of(generation, trace).isfinite().all()
    assert generation.kv_compressions
    assert any(entry.token_mask for entry in trace.entries)


def test_some_tokens_of_a_chunk_come_to_what_they_do_among_all_where_nothing_has_changed():
    dit, draw = magi_goldens.golden_dit("mlp_base"), torch.Generator().manual_seed(0)
    latent, times = torch.randn(1, 16, 12, 4, 4, generator=draw), torch.tensor([[0.7, 0.2]])
    members = [Member(position, magi_goldens.null_caption(dit)) for position in range(2)]
    cache = magi_goldens.small_generation(method(Never())).caches[0]
    mask = torch.rand(24, generator=draw) < 0.4
    subset = Subset.of(mask, "cpu")
    gates = dit.gates(times)
    whole = dit(latent, gates, members, cache)
    before = [entries.clone() for entries in cache.read(0, 0, 1)]
    again = dit(latent, gates, [members[0], Member(1, members[1].caption, subset=subset)], cache)
    computed = latent_mask(mask, 6, 4, 4)
    torch.testing.assert_close(again[:, :, :6], whole[:, :, :6], rtol=0, atol=1e-5)
    expected = whole[:, :, 6:] * computed
    torch.testing.assert_close(again[:, :, 6:], expected, rtol=0, atol=1e-5)
    other = torch.cat([torch.zeros(24, dtype=torch.bool), ~mask])
    for now, then in zip(cache.read(0, 0, 1), before, strict=True):
        assert torch.equal(now[:, :, other], then[:, :, other])


@pytest.mark.parametrize("name", MODELS)
def test_tokens_that_do_not_compute_take_their_forecast(name):
    """Held, a token that never computes again keeps its output, and a line goes on through what it forecast itself."""
    goldens, tokens = MODELS[name]
    mask = torch.arange(tokens) < tokens // 2
    for forecast in (Hold(), Linear()):
        outputs: list[Tensor] = []
        made = in_part(lambda row, chunk: mask[None] if row.step_of(chunk).step > 1 else None, forecast=forecast)
        generation = goldens.small_generation(made, num_chunks=1)
        list(sample(generation, observe=lambda row, _, kept=outputs, g=generation: kept.append(g.output(0))))
        own = latent_mask(mask, 6, 4, 4)[0, 0] if name == "magi" else mask.view(2, 4)
        outputs = [output[0] if name == "magi" else output for output in outputs]
        rest = [output[..., ~own] if name == "magi" else output[~own] for output in outputs]
        if isinstance(forecast, Hold):
            assert all(torch.equal(each, rest[1]) for each in rest[2:])
        else:
            times = [row.steps[0].t for row in generation.schedule.rows]
            slope = (rest[1] - rest[0]) / (times[1] - times[0])
            for t, each in zip(times[2:], rest[2:], strict=True):
                torch.testing.assert_close(each, rest[1] + slope * (t - times[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "masks",
    [torch.zeros(1, 24, dtype=torch.bool), torch.ones(1, 24), torch.ones(1, 24, dtype=torch.bool, device="meta")],
    ids=["none", "float", "on a device"],
)
def test_a_part_that_is_none_is_refused(masks):
    generation = magi_goldens.small_generation(in_part(lambda row, chunk: masks))
    with pytest.raises(ValueError, match=r"a part of chunk 0 computed in row 1; give bool \[branches, tokens\] on the"):
        list(sample(generation))


def test_a_chunks_first_step_must_compute_as_a_whole():
    made = by_row(lambda row: Decision(row.chunks, {row.chunks[-1]: torch.arange(24)[None] < 4}), uses=("tokens",))
    with pytest.raises(RuntimeError, match="chunk 0 computes in part and never did as a whole"):
        list(sample(magi_goldens.small_generation(made)))


def test_tokens_go_out_of_a_pack_and_back():
    subsets = [None, Subset.of(torch.tensor([False, True, True, False]), "cpu")]
    running = RunningTokens.of(subsets, 4)
    assert (running.counts, running.slices) == ((4, 2), (slice(0, 4), slice(4, 6)))
    x = torch.arange(8.0)
    taken = running.take(x, dim=0)
    assert taken.tolist() == [0, 1, 2, 3, 5, 6]
    assert running.put(-taken, x, dim=0).tolist() == [0, -1, -2, -3, 4, -5, -6, 7]
    assert running.rows(2).tolist() == [0, 0, 1, 1, 2, 3]
    assert Subset.of(torch.ones(4, dtype=torch.bool), "cpu") is None
    assert RunningTokens.of([None, None], 4).places is None


def test_tokens_stand_in_a_latent_as_the_network_takes_them():
    latents = torch.randn(1, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = latent_tokens(latents, patch=2)
    assert tokens.shape == (1, 4, 6, 12)
    assert torch.equal(tokens[0, 2, 4], latents[0, :, 2, 2:4, 2:4].flatten())
    mask = torch.zeros(12, dtype=torch.bool)
    mask[6 + 4] = True
    where = latent_mask(mask, 2, 4, 6)[0, 0].nonzero().tolist()
    assert where == [[1, 2, 2], [1, 2, 3], [1, 3, 2], [1, 3, 3]]
