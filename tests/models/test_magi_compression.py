"""MAGI-1 with a KV budget: the official code's runs (goldens/magi: g_flowcache_compress*), and what must be equal."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import zip_longest

import pytest
import torch
from torch import Tensor

from eval.flops import check
from flowcache.forecast.hold import Hold
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.models.magi.generation import MagiGeneration
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.methods import by_row, changed, chunkwise, every_k, uniform, vanilla
from tests.models.magi_goldens import (
    CHUNK_WIDTH,
    GUIDANCE_3,
    decisions,
    golden_generation,
    latents_of,
    manifest,
    null_caption,
    small_generation,
    tensors,
)
from tests.models.test_magi_flops import counted_run, two_layers

WINDOW, CHUNK = 4, 72
OFFICIAL = {
    "g_flowcache_compress_mlp": 2,
    "g_flowcache_compress_chunkq_mlp": 1,
    "g_flowcache_compress_framewise_mlp": 2,
}
# With the near-clean copy the official code scores by the copy's queries, rotated to a place of their own.
NEAR_CLEAN = ("g_flowcache_compress_nearclean_asis_mlp", "g_flowcache_compress_nearclean_repaired_mlp")


def published(run: str) -> Method:
    """The method with every parity switch at the published setting."""
    case = manifest(run)
    options = case["method"]
    return chunkwise(
        threshold=case["rel_l1_thresh"],
        warmup_steps=case["warmup_steps"],
        last_step="global",
        refresh_clean_kv=False,
        forecast=Hold(quantity="displacement"),
        near_clean=not case["discard_nearly_clean_chunk"],
        budget=f"{case['total_cache_chunk_nums'] - WINDOW} chunks",  # the official number counts the window in
        select=Joint(
            mix_lambda=options["mix_lambda"],
            selection=options["compress_strategy"],
            query_granularity=options["query_granularity"],
            weighting=options["score_weighting_method"],
            power=options["power"],
            kept_order="score",
            timing="published",
        ),
    )


@cache
def finished(run: str) -> tuple[MagiGeneration, Trace, list[dict[int, Tensor]], list[int]]:
    """A finished run, its trace, and of every compression the kept positions by layer, and the row it came after."""
    generation, trace = golden_generation(run, published(run)), Trace()
    kept: list[dict[int, Tensor]] = []
    rows: list[int] = []
    (kv,) = generation.caches
    compress = kv.compress

    def record() -> None:
        compress()
        size = kv.budget.kept
        kept.append({layer: kv.positions(layer)[0, :, :size].clone() for layer in range(3)})

    kv.compress = record

    def observe(row, decision) -> None:
        rows.extend([row.index] * (len(kept) - len(rows)))

    for _ in sample(generation, trace, observe=observe):
        pass
    return generation, trace, kept, rows


@pytest.mark.parametrize("run", OFFICIAL)
def test_compressed_runs_are_the_official_ones(run):
    generation, trace, _, _ = finished(run)
    assert trace.computed_rows() == [step["computed"] for step in decisions(run)]
    torch.testing.assert_close(generation.latents, tensors(run)["out.final_latents"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("run", OFFICIAL)
def test_compressions_come_when_the_official_ones_do_and_keep_the_same_entries(run):
    """The official indices count from the first clean entry; those of a second round, from what the first kept."""
    _, _, kept, rows = finished(run)
    record = manifest(run)["compressions"]
    assert len(kept) == OFFICIAL[run]
    assert rows == [entry["step"] for entry in record]
    before: dict[int, Tensor] = {}
    for index, layers in enumerate(kept):
        for layer, ours in layers.items():
            chosen = tensors(run)[f"compress{index}.layer{layer}.indices"].long().T
            finished_chunks = torch.arange(rows[index] // 2 - 2) * CHUNK
            everything = (finished_chunks[:, None] + torch.arange(CHUNK)).flatten().int().expand(2, -1)
            union = everything if not before else torch.cat([before[layer], everything[:, -CHUNK:]], dim=1)
            assert as_sets(ours) == as_sets(union.gather(1, chosen))
        before = layers


@pytest.mark.parametrize("run", NEAR_CLEAN)
def test_runs_with_the_near_clean_copy_are_the_official_ones_up_to_their_first_compression(run):
    generation, _, _, rows = finished(run)
    assert rows == [entry["step"] for entry in manifest(run)["compressions"]]
    before = slice(0, CHUNK_WIDTH * 2)  # chunks 0 and 1, of which the second finishes in the row of the first
    expected = tensors(run)["out.final_latents"][:, :, before]
    torch.testing.assert_close(generation.latents[:, :, before], expected, atol=1e-3, rtol=0)


def as_sets(positions: Tensor) -> list[set[int]]:
    sets = [set(head) for head in positions.tolist()]
    assert all(len(own) == positions.shape[1] for own in sets)
    return sets


# What must be equal, on 24 tokens a chunk (four a frame), 3 layers, 2 key-value heads.

TOKENS = 24
PUBLISHED_TIMING = {"refresh_clean_kv": False, "select": Joint(timing="published")}
REUSING = chunkwise(threshold=0.1, warmup_steps=2, budget="1 chunk")
SETTINGS = {
    "plain": {},
    "guidance 3": GUIDANCE_3,
    "continuation": {"prefix_frames": 14},
    "look-back": {"noise2clean_kvrange": (6, 5, 4, 3), "clean_chunk_kvrange": 4},
}


def latents(method: Method, trace: Trace | None = None, **settings) -> Tensor:
    return latents_of(small_generation(method, **{"num_chunks": 7} | settings), trace)


@cache
def uncompressed(setting: str, method: Method) -> Tensor:
    return latents(method, **SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("budget", ["7 chunks", "6 chunks", "168 tokens", "1 GiB"])
def test_a_budget_as_large_as_the_cache_changes_nothing_bit_for_bit(budget, setting):
    """The last chunk is never among the finished ones, so that all but one chunk are enough."""
    method = chunkwise(threshold=0.1, warmup_steps=2)
    trace = Trace()
    bounded = latents(changed(method, budget=budget), trace, **SETTINGS[setting])
    assert torch.equal(bounded, uncompressed(setting, method))
    assert "compression" not in trace.flops_by_kind()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_smaller_budget_changes_what_comes_after_it_is_first_exceeded(setting):
    method, trace = chunkwise(threshold=0.1, warmup_steps=2), Trace()
    bounded = latents(changed(method, budget="1 chunk"), trace, **SETTINGS[setting])
    first = min(row for row, work in trace.work if work.kind == "compression")
    finished = {"continuation": 2}.get(setting, first // 2 - 3)  # before the first compression
    frames = CHUNK_WIDTH * finished
    assert torch.equal(bounded[:, :, :frames], uncompressed(setting, method)[:, :, :frames])
    assert not torch.allclose(bounded, uncompressed(setting, method), atol=1e-3)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"budget": "1 chunk"},
        {"budget": "17 tokens"},
        {"budget": "112 KiB"},
        {"budget": "8 tokens", "select": Joint(selection="frame", query_granularity=3)},
        {"budget": "2 chunks", "select": Joint(selection="chunk", query_granularity="token")},
        {"budget": "30 tokens", **PUBLISHED_TIMING},
    ],
    ids=["chunk", "tokens", "bytes", "frames", "chunks", "published timing"],
)
def test_every_head_keeps_its_budget_in_order_and_the_cache_stays_in_its_buffer(options, setting):
    if setting == "guidance 3" and options["budget"] == "112 KiB":
        options = {"budget": "224 KiB"}
    method, trace = changed(REUSING, **options), Trace()
    generation = small_generation(method, num_chunks=7, **SETTINGS[setting])
    kept = generation._budget.kept
    allocated = generation.kv_bytes_allocated
    if options["budget"].endswith("KiB"):
        assert allocated <= int(options["budget"].split()[0]) * 1024
    counts = []

    def observe(row: Row, decision: Decision) -> None:
        assert generation.kv_bytes_used <= generation.kv_bytes_allocated == allocated
        for kv in generation.caches:
            assert kv.num_tokens <= kv.capacity == generation._budget.capacity
            end, positions = kv._first_whole, torch.stack([kv.positions(layer) for layer in range(3)])
            assert positions.shape == (3, 1, 2, kv.num_tokens)
            assert (positions.diff() > 0).all()  # in order, each once
            assert ((positions < end * TOKENS).sum(-1) == (kept if end else 0)).all()
            assert positions.max() == TOKENS * (row.chunks[-1] + 1) - 1
            counts.append(end)

    for _ in sample(generation, trace, observe=observe):
        pass
    assert len(set(counts)) >= (3 if generation.schedule.prefix_chunks == 0 else 2)  # several rounds
    assert trace.kv_bytes_used_peak <= trace.kv_bytes_allocated == allocated
    assert max(entry.kv_tokens for entry in trace.entries) <= generation._budget.capacity
    assert torch.isfinite(generation.latents).all()


@pytest.mark.parametrize("budget", ["1 chunk", "150 KiB"])
@pytest.mark.parametrize("runtime", [{}, {"prefix_frames": 12}], ids=["text", "prefix"])
def test_bytes_allocated_are_the_same_for_any_length_of_video(budget, runtime):
    def allocated(num_chunks: int, method: Method) -> int:
        return small_generation(method, num_chunks=num_chunks, **runtime).kv_bytes_allocated

    bounded = [allocated(n, changed(REUSING, budget=budget)) for n in (9, 12, 40)]
    assert len(set(bounded)) == 1
    assert bounded[0] < allocated(9, vanilla()) < allocated(12, vanilla())


def test_two_generations_in_a_row_and_in_turns_are_equal():
    first, second = latents(REUSING), latents(REUSING)
    assert torch.equal(first, second)
    turns = [small_generation(REUSING, num_chunks=7), small_generation(vanilla(), num_chunks=7, seed=1)]
    for _ in zip_longest(sample(turns[0]), sample(turns[1])):
        pass
    assert torch.equal(turns[0].latents, first)


@pytest.mark.parametrize("timing", ["sound", "published"])
def test_guidance_branches_choose_for_themselves_and_never_mix(timing):
    """The velocity is the null pass's alone: whatever the captions, its cache keeps the same."""
    scales = {"cfg_number": 3, "prev_chunk_scales": (1.0,) * 5, "text_scales": (0.0,) * 5}
    method = vanilla(budget="20 tokens", select=Joint(timing=timing))
    kept = []
    for other in (False, True):
        generation = small_generation(method, num_chunks=6, **scales)
        if other:
            generation.captions = [null_caption(generation.dit)] * 6
        latents_of(generation)
        kept.append([[kv.positions(layer) for layer in range(3)] for kv in generation.caches])
    (captioned, null), (other_captioned, other_null) = kept
    assert all(map(torch.equal, null, other_null))
    assert not all(map(torch.equal, captioned[1:], other_captioned[1:]))
    assert not all(map(torch.equal, captioned, null))


def skipping(rule: Callable[[Row], bool], **options) -> Method:
    """Computes everything in rows that the rule allows, and where a chunk starts, that chunk."""

    def decide(row: Row) -> Decision:
        starts = row.chunks[-1:] if row.steps[-1].step == 0 else ()
        return Decision(row.chunks if rule(row) else starts)

    return by_row(decide, budget="1 chunk", **options)


@pytest.mark.parametrize("options", [{}, {"refresh_clean_kv": False}, PUBLISHED_TIMING], ids=["", "stale", "published"])
@pytest.mark.parametrize("rule", [lambda row: False, lambda row: row.index % 3 == 0], ids=["starts only", "a third"])
def test_a_compression_waits_for_a_row_that_computes_and_the_room_lasts(rule, options):
    trace, method = Trace(), skipping(rule, **options)
    latents(method, trace)
    computing = {row for row, work in trace.work if work.kind == "denoise"}
    compressing = {row for row, work in trace.work if work.kind == "compression"}
    assert compressing
    if options != PUBLISHED_TIMING:
        assert compressing <= computing


def test_the_published_timing_compresses_by_remembered_queries_where_a_row_computes_nothing():
    trace = Trace()
    latents(skipping(lambda row: False, **PUBLISHED_TIMING), trace)
    compressing = {row for row, work in trace.work if work.kind == "compression"}
    assert compressing - {row for row, work in trace.work if work.kind == "denoise"}


@pytest.mark.parametrize("timing", ["sound", "published"])
def test_the_published_timing_stops_where_no_chunk_is_to_come(timing):
    trace = Trace()
    method = vanilla(budget="1 chunk", refresh_clean_kv=False, select=Joint(timing=timing))
    latents(method, trace)
    last_start = 2 * 6
    rows = [row for row, work in trace.work if work.kind == "compression"]
    assert (max(rows) >= last_start) == (timing == "sound")


COUNTED = {
    "guidance 1": ({}, {}),
    "guidance 3": (GUIDANCE_3, {}),
    "prefix": ({"prefix_frames": 14}, {}),
    "look-back": ({"noise2clean_kvrange": (6, 5, 4, 3), "clean_chunk_kvrange": 4}, {}),
    "published": ({}, PUBLISHED_TIMING),
    "last frame": ({}, {"select": Joint(query_granularity="frame")}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_the_count_of_a_compressed_run_is_what_pytorch_counts(case):
    runtime, options = COUNTED[case]
    method = every_k(every=2, warmup_steps=1, budget="30 tokens", **options)
    executed, trace = counted_run(method, two_layers(), num_chunks=7, **runtime)
    check(executed, trace)
    assert trace.flops_by_kind()["compression"] > 0


def test_what_is_compressed_out_of_reach_does_not_matter():
    """Chunks see three chunks back at most, all of them active: nothing that is kept is ever seen."""
    method, settings = vanilla(), {"noise2clean_kvrange": (4, 3, 2, 1), "clean_chunk_kvrange": 1}
    assert torch.equal(latents(changed(method, budget="5 tokens"), **settings), latents(method, **settings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1 KiB"}, "budget='1 KiB' is too small for the chunks being denoised and 1 tokens of"),
        (
            {"budget": "30 tokens", "select": Joint(selection="chunk")},
            "budget='30 tokens' is 30 tokens per head, and Joint keeps a whole number of units of 24 tokens, at least ",
        ),
        (
            {"budget": "1 chunk", "select": Joint(query_granularity=25)},
            "query_granularity=25 is more than the 24 queries of a chunk",
        ),
    ],
)
def test_impossible_budgets_are_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small_generation(changed(REUSING, **options), num_chunks=7)


def test_the_published_teacache_runs_with_a_budget():
    method = uniform(threshold=0.05, warmup_steps=1, published=True, budget="1 chunk")
    assert torch.isfinite(latents(method)).all()
