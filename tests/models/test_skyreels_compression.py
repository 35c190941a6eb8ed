"""SkyReels-V2 with a KV budget: the official code's runs (goldens/skyreels: *_compress1), and what must be equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.flops import ExecutedFlops, check
from flowcache.kv.cache import KvCache
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.models.skyreels import SkyReels
from flowcache.models.skyreels.generation import SkyReelsGeneration
from flowcache.models.wan.attention import Block, Pack
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.methods import by_row, changed, chunkwise, every_k, vanilla
from tests.models.skyreels_goldens import golden_generation, latents_of, manifest, small_generation, tensors

GOLDEN = tensors("sampling")
TOLERANCE = 5e-5
PUBLISHED = {
    "distance": "rescaled_modulation",
    "polynomial": "skyreels_v2_1.3b_retained",
    "warmup_steps": 5,
    "refresh_clean_kv": False,
    "prefix": "published",
    "budget": "1 chunk",
    "select": Joint(kept_order="score", timing="published"),
}
OFFICIAL = {
    "flowcache_noskip_compress1": chunkwise(threshold=0.0, **PUBLISHED),
    "flowcache_thr0.10_compress1": chunkwise(threshold=0.1, **PUBLISHED),
}
BLOCK = 80  # tokens of a golden chunk


@cache
def finished(variant: str) -> tuple[SkyReelsGeneration, dict[int, Tensor], list[tuple[int, int, Tensor]]]:
    """A finished run, its windows' latents, and of every compression (row, chunks before, kept positions by layer)."""
    method = OFFICIAL[variant]
    generation, finals = golden_generation(variant, method), {}
    kept: list[tuple[int, int, Tensor]] = []

    def watch(kv: KvCache) -> None:
        move = kv._compress

        def record(layer: int, query: Tensor) -> None:
            move(layer, query)
            kept.append((generation._row.index, kv._first_whole, kv._positions[layer, 0].clone()))

        kv._compress = record

    for kv in generation.caches:
        watch(kv)
    for _ in sample(generation, observe=lambda row, _: finals.__setitem__(row.window, generation.latents[0].clone())):
        pass
    return generation, finals, kept


@pytest.mark.parametrize("variant", OFFICIAL)
def test_latents_of_both_windows_are_the_official_ones(variant):
    _, finals, _ = finished(variant)
    for window in (0, 1):
        torch.testing.assert_close(finals[window], GOLDEN[f"{variant}.w{window}.final"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", OFFICIAL)
def test_kept_entries_are_the_official_ones_in_their_order_of_layers_and_branches(variant):
    """The official compressions of a window come in calls, two a row, of two layers each."""
    generation, _, kept = finished(variant)
    ours = iter(kept)
    compared = 0
    for window in (0, 1):
        first_row = generation.schedule.windows[window].rows[0]
        for n, record in enumerate(manifest("sampling")["variants"][variant]["windows"][window]["compressions"]):
            row, end, positions = next(ours)
            assert (row - first_row, end * BLOCK) == (record["cnt"] // 2, record["clean_tokens"])
            assert positions.shape[-1] == record["budget"]
            if record["gap"] > 1e-7:
                official = GOLDEN[f"{variant}.w{window}.compress{n}.indices"]
                assert [set(head) for head in positions.tolist()] == [set(head) for head in official.tolist()]
                compared += 1
    assert next(ours, None) is None
    assert compared >= 6


# What must be equal, on eight tokens a chunk (four a frame), 2 layers, 3 heads, two windows of up to six chunks.

TOKENS = 8
WINDOWS = {"num_chunks": 8, "base_num_frames": 45, "ar_step": 2, "num_steps": 4, "guidance_scale": 1.0}
REUSING = chunkwise(threshold=0.05, warmup_steps=1, distance="latent", budget="1 chunk")
STALE = {"refresh_clean_kv": False, "select": Joint(timing="published")}
SETTINGS = {
    "two windows": {"guidance_scale": 6.0},
    "long overlap": {"overlap_history": 13},
    "given chunks": {"given_latents": 5, "addnoise_condition": 20},
    "clean blocks seen": {"clean_blocks_seen": 2},
}


def latents(method: Method, trace: Trace | None = None, **settings) -> Tensor:
    return latents_of(small_generation(method, **WINDOWS | settings), trace)


@cache
def uncompressed(setting: str, method: Method) -> Tensor:
    return latents(method, **SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("budget", ["6 chunks", "5 chunks", "1 GiB"])
def test_a_budget_as_large_as_the_cache_changes_nothing_bit_for_bit(budget, setting):
    """A window's last chunk is never among the finished ones, so that all but one are enough."""
    method, trace = changed(REUSING, budget=None), Trace()
    bounded = latents(changed(method, budget=budget), trace, **SETTINGS[setting])
    assert torch.equal(bounded, uncompressed(setting, method))
    assert "compression" not in trace.flops_by_kind()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("options", [{}, {"refresh_clean_kv": False}, STALE], ids=["", "stale", "published"])
def test_a_smaller_budget_changes_what_comes_after_it_is_first_exceeded(setting, options):
    method, trace = changed(REUSING, budget=None, **options), Trace()
    bounded = latents(changed(method, budget="1 chunk"), trace, **SETTINGS[setting])
    assert not torch.allclose(bounded, uncompressed(setting, method), atol=1e-3)
    # Keys lie in a buffer of another size, and kernels may add in another order.
    torch.testing.assert_close(bounded[:, :1], uncompressed(setting, method)[:, :1], atol=1e-4, rtol=0)
    scorers = [work.chunk for _, work in trace.work if work.kind == "compression"]
    assert scorers == sorted(scorers)
    assert min(scorers) < 6 <= max(scorers)  # in both windows


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"budget": "1 chunk"},
        {"budget": "5 tokens"},
        {"budget": "4 tokens", "select": Joint(selection="frame", query_granularity=3)},
        {"budget": "2 chunks", "select": Joint(selection="chunk", query_granularity="token")},
        {"budget": "11 tokens", **STALE},
    ],
    ids=["chunk", "tokens", "frames", "chunks", "published timing"],
)
def test_every_head_keeps_its_budget_in_order_and_the_cache_stays_in_its_buffer(options, setting):
    method, trace = changed(REUSING, **options), Trace()
    generation = small_generation(method, **WINDOWS | SETTINGS[setting])
    kept, allocated = generation._budget.kept, generation.kv_bytes_allocated
    ends = {0: set(), 1: set()}

    def observe(row: Row, decision: Decision) -> None:
        assert generation.kv_bytes_used <= generation.kv_bytes_allocated == allocated
        assert len({kv._first_whole for kv in generation.caches}) == 1
        for kv in generation.caches:
            assert kv.num_tokens <= kv.capacity == generation._budget.capacity
            end, positions = kv._first_whole, torch.stack([kv.positions(layer) for layer in range(2)])
            assert positions.shape == (2, 1, 3, kv.num_tokens)
            assert (positions.diff() > 0).all()  # in order, each once
            assert ((positions < end * TOKENS).sum(-1) == (kept if end else 0)).all()
            assert positions.max() == TOKENS * (row.chunks[-1] + 1 - generation.window.first_chunk) - 1
            ends[row.window].add(end)

    for _ in sample(generation, trace, observe=observe):
        pass
    assert len(ends[0]) >= 2
    assert len(ends[1]) >= 2 or kept > TOKENS  # its three chunks exceed a smaller budget only
    assert all(0 in rounds for rounds in ends.values()) or setting == "given chunks"
    assert trace.kv_bytes_used_peak <= trace.kv_bytes_allocated == allocated


def test_bytes_allocated_are_the_same_for_any_length_of_video_and_less_for_a_smaller_budget():
    def allocated(num_chunks: int, budget: str | None, **settings) -> int:
        method = changed(REUSING, budget=budget)
        return small_generation(method, **WINDOWS | {"num_chunks": num_chunks} | settings).kv_bytes_allocated

    assert len({allocated(n, "1 chunk") for n in (6, 9, 30)}) == 1
    assert allocated(9, "3 tokens") < allocated(9, "1 chunk") < allocated(9, None)
    for limit in (20, 30):
        assert 1024 * (limit - 2) < allocated(9, f"{limit} KiB") <= 1024 * limit
    long_windows = {"base_num_frames": 93}  # twelve chunks, of which two are active at once
    assert allocated(12, "1 chunk", **long_windows) == allocated(9, "1 chunk")
    assert allocated(12, None, **long_windows) == 2 * allocated(9, None)


def test_two_generations_in_a_row_and_in_turns_are_equal():
    first, second = latents(REUSING), latents(REUSING)
    assert torch.equal(first, second)
    turns = [small_generation(REUSING, **WINDOWS), small_generation(vanilla(), **WINDOWS, seed=1)]
    finished_chunks: list[Tensor] = []
    for ours, _ in zip_longest(sample(turns[0]), sample(turns[1])):
        finished_chunks += [] if ours is None else [ours[1]]
    assert torch.equal(torch.cat(finished_chunks, dim=1), first)


def test_a_window_compresses_as_if_it_were_alone():
    """What the first window kept is forgotten: its entries may be anything when the second begins."""

    def run(disturb: bool) -> Tensor:
        generation = small_generation(REUSING, **WINDOWS)

        def observe(row: Row, decision: Decision) -> None:
            if disturb and row.index == generation.schedule.windows[0].rows[-1]:
                for kv in generation.caches:
                    kv._store._keys += 1.0
                    kv._positions += 1

        return torch.cat([latent for _, latent in sample(generation, observe=observe)], dim=1)

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("options", [{}, STALE], ids=["", "published"])
def test_guidance_branches_choose_for_themselves_and_never_mix(options):
    """Guidance so weak that the latents are the first branch's: its cache keeps the same, whatever the second."""
    method, kept = vanilla(attention="cached", budget="5 tokens", **options), []
    for other in (False, True):
        generation = small_generation(method, **WINDOWS | {"guidance_scale": 1 + 1e-12})
        if other:
            generation._features = [generation._features[0], generation._features[1] * -20.0]
        latents_of(generation)
        kept.append(
            [[(kv.positions(layer), kv.read(layer, 0, 2)[0]) for layer in range(2)] for kv in generation.caches]
        )
    (first, second), (other_first, other_second) = kept
    for (positions, keys), (other_positions, other_keys) in zip(first, other_first, strict=True):
        assert torch.equal(positions, other_positions)
        torch.testing.assert_close(keys, other_keys, atol=1e-4, rtol=0)
    assert not torch.equal(second[1][0], other_second[1][0])


def skipping(rule: Callable[[Row], bool], **options) -> Method:
    """Computes everything in rows that the rule allows, and where a chunk starts, that chunk."""

    def decide(row: Row) -> Decision:
        starts = row.chunks[-1:] if row.steps[-1].step == 0 else ()
        return Decision(row.chunks if rule(row) else starts)

    return by_row(decide, budget="1 chunk", **options)


@pytest.mark.parametrize("options", [{}, {"refresh_clean_kv": False}, STALE], ids=["", "stale", "published"])
@pytest.mark.parametrize("rule", [lambda row: False, lambda row: row.index % 3 == 0], ids=["starts only", "a third"])
def test_a_compression_waits_for_a_row_that_computes_and_the_room_lasts(rule, options):
    trace, method = Trace(), skipping(rule, **options)
    latents(method, trace)
    computing = {row for row, work in trace.work if work.kind == "denoise"}
    compressing = {row for row, work in trace.work if work.kind == "compression"}
    assert compressing
    assert compressing <= computing


COUNTED = {
    "refreshed": {},
    "stale": {"refresh_clean_kv": False},
    "published": STALE,
    "last frame": {"select": Joint(query_granularity="frame")},
}


@pytest.mark.parametrize("case", COUNTED)
@pytest.mark.parametrize("settings", [{}, {"clean_blocks_seen": 2}], ids=["", "clean blocks seen"])
def test_the_count_of_a_compressed_run_is_what_pytorch_counts(case, settings):
    method = every_k(every=2, warmup_steps=1, budget="5 tokens", **COUNTED[case])
    generation = small_generation(method, **WINDOWS | {"num_chunks": 5, "num_steps": 3} | settings)
    trace = Trace()
    with ExecutedFlops() as executed:
        for _ in sample(generation, trace, executed.clock):
            pass
    check(executed, trace)
    assert trace.flops_by_kind()["compression"] > 0


def test_a_dry_run_compresses_its_counts():
    model = SkyReels.on_meta("1.3B")
    method, trace = vanilla(attention="cached", budget="1 chunk"), Trace()
    for _ in sample(model.generation("a cat", 177, method, 0, num_steps=20), trace):
        pass
    queries, tokens, layers, width = 10200, 20400, 30, 1536
    scoring = 2 * layers * (queries * tokens * width + 2 * tokens * width)
    counts = [work.flops for _, work in trace.work if work.kind == "compression"]
    assert set(counts) == {scoring}
    assert len(counts) == 2 * (3 + 3)  # branches; chunks 1 to 3 of windows of five, and the same after the overlap


def test_the_published_first_row_of_a_window_sees_no_given_chunk():
    """As with a limited number of clean chunks; without either, it does."""
    method = changed(REUSING, prefix="published", budget="4 chunks")
    assert not torch.allclose(latents(method), latents(changed(method, prefix="clean")), atol=1e-3)
    without = changed(method, budget=None)
    assert torch.equal(latents(without), latents(changed(without, prefix="clean")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1 KiB"}, "budget='1 KiB' is too small for the chunks being denoised and 1 tokens of"),
        (
            {"budget": "5 tokens", "select": Joint(selection="frame")},
            "budget='5 tokens' is 5 tokens per head, and Joint keeps a whole number of units of 4 tokens, at least 4; ",
        ),
        (
            {"budget": "1 chunk", "attention": "native", "reuse": Never()},
            "attention='native' has none; choose attention='cached'",
        ),
    ],
)
def test_impossible_budgets_are_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError, match=message):
        small_generation(changed(REUSING, **options), **WINDOWS)


def scorers(monkeypatch: pytest.MonkeyPatch, method: Method, **settings: Any) -> list[tuple[Row, int, int]]:
    """Of every compression the row, the chunk whose queries chose in all layers, and the first chunk that is not
    compressed. By the queries themselves: what the cache was given is compared with each chunk's."""
    generation = small_generation(method, **settings)
    attend, score, begin = Block._attend, KvCache.score, KvCache.begin_compression
    projected: list[tuple[int, Tensor]] = []  # of the forward at hand: position and queries
    rows, found = [], []

    def attended(block: Block, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
        parts = query.split([member.num_tokens for member in pack.members], dim=2)
        projected[:] = [(member.position, part) for member, part in zip(pack.members, parts, strict=True)]
        return attend(block, query, key, value, pack)

    def begun(cache: KvCache, end: int, scorer: int) -> int:
        found.append([rows[-1], set(), end + generation.window.first_chunk])
        return begin(cache, end, scorer)

    def scored(cache: KvCache, layer: int, query: Tensor) -> None:
        (own,) = [position for position, part in projected if torch.equal(part, query)]
        found[-1][1].add(own + generation.window.first_chunk)
        return score(cache, layer, query)

    monkeypatch.setattr(Block, "_attend", attended)
    monkeypatch.setattr(KvCache, "score", scored)
    monkeypatch.setattr(KvCache, "begin_compression", begun)
    begin_row = generation.begin_row
    monkeypatch.setattr(generation, "begin_row", lambda row: (rows.append(row), begin_row(row))[1])
    list(sample(generation))
    return [(row, chunk, end) for row, (chunk,), end in found]


# One window of six chunks, three of them denoised at once: two are left when the oldest finishes.
BESIDE = {"num_steps": 6, "ar_step": 2, "base_num_frames": 45, "num_chunks": 6}


def test_the_published_timing_scores_by_the_first_computed_chunk_after_those_that_are_final(monkeypatch):
    """Fidelity row 11. The recorded runs have one chunk left at that point, where every rule gives the same."""
    method = vanilla(attention="cached", budget="1 chunk", refresh_clean_kv=False, select=Joint(timing="published"))
    found = scorers(monkeypatch, method, **BESIDE)
    assert found
    assert all(chunk == end for _, chunk, end in found)
    assert any(len([c for c in row.chunks if c >= end]) >= 2 for row, _, end in found)  # a later one could have


@pytest.mark.parametrize("refresh_clean_kv", [True, False])
def test_the_sound_timing_scores_by_the_newest_computed_chunk(monkeypatch, refresh_clean_kv):
    method = vanilla(attention="cached", budget="1 chunk", refresh_clean_kv=refresh_clean_kv)
    found = scorers(monkeypatch, method, **BESIDE)
    assert found
    assert all(chunk == row.chunks[-1] for row, chunk, _ in found)
    assert any(len(row.chunks) >= 2 for row, _, _ in found)


def test_the_sound_timing_scores_by_the_newest_chunk_that_computes_where_the_newest_reuses(monkeypatch):
    """In a row that only its older chunks compute, the newest of these chooses."""

    def rule(row: Row) -> Decision:
        starts = any(step.step == 0 for step in row.steps)
        return Decision(row.chunks if starts or len(row.chunks) < 2 else row.chunks[:-1])

    found = scorers(monkeypatch, by_row(rule, budget="1 chunk"), **BESIDE)
    assert all(chunk == rule(row).compute[-1] for row, chunk, _ in found)
    assert any(chunk != row.chunks[-1] for row, chunk, _ in found)
