"""What a trace says about a run adds up."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from flowcache.forecast.hold import Hold
from flowcache.trace import Trace, TraceEntry, Work
from tests.methods import chunkwise, vanilla
from tests.models.magi_goldens import GUIDANCE_3, latents_of, small_generation

METHODS = {
    "vanilla": vanilla(),
    "flowcache": chunkwise(threshold=0.1, warmup_steps=2),
    "flowcache published": chunkwise(
        threshold=0.1,
        warmup_steps=2,
        last_step="global",
        refresh_clean_kv=False,
        forecast=Hold(quantity="displacement"),
        near_clean=False,
    ),
}


def traced(method, **settings):
    trace, generation = Trace(), small_generation(method, **settings)
    latents_of(generation, trace)
    return trace, generation


@pytest.fixture(
    scope="module", params=[(m, s) for m in METHODS for s in ("plain", "guidance 3", "prefix")], ids="-".join
)
def case(request):
    method, setting = request.param
    options = {"plain": {}, "guidance 3": GUIDANCE_3, "prefix": {"prefix_frames": 8}}[setting]
    return METHODS[method], *traced(METHODS[method], num_chunks=4, **options)


def test_entries_are_the_schedules_chunk_steps(case):
    _, trace, generation = case
    steps = [(row.index, s.chunk, s.step, s.t) for row in generation.schedule.rows for s in row.steps]
    assert [(e.row, e.chunk, e.step, e.t) for e in trace.entries] == steps
    assert len(trace.entries) == generation.schedule.num_chunk_steps


def test_flops_add_up_by_kind_by_part_and_by_entry(case):
    method, trace, generation = case
    assert trace.flops > 0
    assert trace.flops == sum(trace.flops_by_kind().values()) == sum(trace.flops_by_part().values())
    assert trace.flops == sum(work.flops for _, work in trace.work)
    assert sum(entry.flops for entry in trace.entries) == trace.flops_by_kind()["denoise"]
    for entry in trace.entries:
        assert (entry.flops > 0) == (entry.action == "compute")
    kinds = set(trace.flops_by_kind())
    assert ("refresh" in kinds) == method.refresh_clean_kv
    assert ("near_clean" in kinds) == (method.near_clean and generation.runtime.cfg_number == 1)
    assert ("prefix" in kinds) == (generation.schedule.prefix_chunks > 0)


def test_what_comes_before_the_first_row_is_marked_so(case):
    _, trace, _ = case
    for row, work in trace.work:
        assert (row == -1) == (work.kind in ("caption", "time", "prefix"))


def test_every_finished_chunk_but_the_last_is_refreshed_once(case):
    method, trace, generation = case
    refreshed = [work.chunk for _, work in trace.work if work.kind == "refresh"]
    passes = 2 if generation.runtime.cfg_number == 3 else 1  # with and without caption
    chunks = range(generation.schedule.prefix_chunks, generation.schedule.num_chunks - 1)
    expected = [chunk for chunk in chunks for _ in range(passes)] if method.refresh_clean_kv else []
    assert sorted(refreshed) == expected


def test_the_computed_fraction_and_rows_are_those_of_the_entries(case):
    method, trace, generation = case
    rows = trace.computed_rows()
    assert len(rows) == len(generation.schedule.rows)
    assert trace.computed_fraction == sum(map(len, rows)) / generation.schedule.num_chunk_steps
    if not method.reuse.skips:
        assert trace.computed_fraction == 1.0
        assert rows == [list(row.chunks) for row in generation.schedule.rows]
    else:
        assert 0.2 < trace.computed_fraction < 1.0


def test_distances_are_there_where_a_chunk_was_active_before(case):
    method, trace, _ = case
    for entry in trace.entries:
        measured = method.reuse.distance is not None and entry.step > 0
        assert (entry.distance is not None) == measured
        assert (entry.accumulated is not None) == (method.reuse.distance is not None)


def test_cache_bytes_grow_with_the_chunks_and_never_beyond_what_is_allocated(case):
    _, trace, generation = case
    branches = 2 if generation.runtime.cfg_number == 3 else 1
    a_token = 2 * 3 * 2 * 16 * 4  # key and value, layers, heads, channels, bytes of a float32
    tokens = 24 * generation.schedule.num_chunks
    assert trace.kv_bytes_allocated == generation.kv_bytes_allocated == branches * tokens * a_token
    held = [entry.kv_tokens for entry in trace.entries]
    assert held == sorted(held)
    assert held[0] == 24 * (generation.schedule.prefix_chunks + 1)
    assert held[-1] == tokens
    for entry in trace.entries:
        newest = generation.schedule.rows[entry.row].chunks[-1]
        assert entry.kv_tokens == 24 * (newest + 1)
    assert trace.kv_bytes_used_peak == generation.kv_bytes_used == trace.kv_bytes_allocated


def test_records_are_the_entries_as_plain_numbers():
    trace, _ = traced(METHODS["flowcache"])
    records = list(trace.records())
    assert records == [asdict(entry) for entry in trace.entries]
    assert set(records[0]) == {
        "row", "chunk", "step", "t", "action", "distance", "accumulated", "flops", "kv_tokens",
        "token_mask", "repeated", "cosine", "kv_bytes", "token_share",
    }  # fmt: skip
    assert all(isinstance(value, int | float | str | None) for record in records for value in record.values())


def test_sums_of_a_trace_made_by_hand():
    trace = Trace()
    assert (trace.flops, trace.flops_by_kind(), trace.computed_fraction, trace.computed_rows()) == (0, {}, 0.0, [])
    trace.work = [
        (-1, Work("caption", 0, 5, 0, 0)),
        (0, Work("denoise", 0, 1, 2, 3)),
        (2, Work("denoise", 1, 10, 20, 30)),
    ]
    trace.entries = [
        TraceEntry(0, 0, 0, 0.0, "compute", None, None, 6, 24),
        TraceEntry(1, 0, 1, 0.5, "reuse", 0.1, 0.1, 0, 24),
        TraceEntry(2, 0, 2, 0.5, "held", 0.1, 0.1, 0, 48),
        TraceEntry(2, 1, 0, 0.0, "compute", None, None, 60, 48),
    ]
    assert trace.flops == 71
    assert trace.flops_by_kind() == {"caption": 5, "denoise": 66}
    assert trace.flops_by_part() == {"gemm_flops": 16, "self_attention_flops": 22, "cross_attention_flops": 33}
    assert trace.computed_fraction == 0.5
    assert trace.computed_rows() == [[0], [], [1]]
    assert trace.repeated_rows() == [[], [], []]
    trace.entries.append(TraceEntry(3, 1, 1, 0.5, "reuse", 0.1, 0.1, 0, 48, repeated=True))
    trace.entries.append(TraceEntry(3, 2, 1, 0.5, "forecast", 0.1, 0.1, 0, 48))
    assert (trace.computed_rows()[3], trace.repeated_rows()[3]) == ([], [1])
