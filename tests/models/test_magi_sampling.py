"""Whole sampling runs against the official code's (goldens/magi: f_walk_*, g_*): decisions, distances and latents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import chunkwise, vanilla
from tests.models.magi_goldens import CHUNK_WIDTH, decisions, golden_generation, latents_of, manifest, tensors

WALKS = (
    "f_walk_cfg1_plain_mlp",
    "f_walk_cfg1_plain_glu",
    "f_walk_cfg1_kvrange_mlp",
    "f_walk_cfg1_nearclean_distill8_mlp",
    "f_walk_cfg1_distill12_mlp",
    "f_walk_cfg1_prefix_mlp",
)
REUSED = (
    "g_flowcache_mlp",
    "g_flowcache_nearclean_kept_mlp",
    "g_flowcache_nearclean_dropped_mlp",
    "g_flowcache_never_reuse_mlp",
    "g_flowcache_prefix_mlp",
)


def distilled(run: str) -> bool:
    return manifest(run)["engine"]["distill"]


def assert_latents(latents: Tensor, run: str) -> None:
    """Within the tolerance of goldens/magi/README.md. Upstream's buffer keeps noise where frames were given."""
    given = tensors(manifest(run).get("inputs", run)).get("in.prefix_latents")
    start = 0 if given is None else given.shape[2]
    expected = tensors(run)["out.final_latents"]
    torch.testing.assert_close(
        latents[:, :, start:], expected[:, :, start:], atol=1e-3 if distilled(run) else 2e-4, rtol=0
    )


def published(run: str) -> Method:
    """The method with every parity switch at the published setting."""
    case = manifest(run)
    return chunkwise(
        threshold=case["rel_l1_thresh"],
        warmup_steps=case["warmup_steps"],
        last_step="global",
        distance="embedded_latent",
        refresh_clean_kv=False,
        forecast=Hold(quantity="displacement"),
        near_clean=not case["discard_nearly_clean_chunk"],
    )


@pytest.mark.parametrize("run", WALKS)
def test_vanilla_runs_match_the_official_code(run):
    generation = golden_generation(run, vanilla())
    recorded = manifest(run)["mean_abs_latent_per_chunk_after_step"]

    def observe(row, decision):
        means = generation.latents.unflatten(2, (-1, CHUNK_WIDTH)).abs().mean(dim=(0, 1, 3, 4, 5))
        expected = torch.tensor(recorded[row.index])
        active = slice(row.chunks[0], row.chunks[-1] + 1)
        torch.testing.assert_close(means[active], expected[active], rtol=1e-4, atol=0, msg=f"row {row.index} is off")

    emitted = list(sample(generation, observe=observe))
    assert_latents(generation.latents, run)
    first = generation.schedule.prefix_chunks
    assert [chunk - first for chunk, _ in emitted] == [c for c, _ in manifest(run)["emitted_chunks_index_and_frames"]]
    for chunk, latent in emitted:
        assert torch.equal(latent, generation.latents[0, :, chunk * CHUNK_WIDTH : (chunk + 1) * CHUNK_WIDTH])


def test_a_long_vanilla_run_matches_the_official_code():
    run = "g_vanilla_16_nearclean_mlp"
    generation = golden_generation(run, vanilla())
    assert_latents(latents_of(generation), run)


@pytest.mark.parametrize("run", WALKS)
def test_rows_run_the_same_forwards_as_the_official_code(run):
    """Times, ranges of keys, and the clean and near-clean extras of every forward."""
    generation = golden_generation(run, vanilla())
    trace = Trace()
    latents_of(generation, trace)
    forwards = [entry for entry in manifest(run)["forward_log"] if not entry.get("extract_prefix_video_feature")]
    assert len(forwards) == len(generation.schedule.rows)
    for row, forward in zip(generation.schedule.rows, forwards, strict=True):
        work = [item for index, item in trace.work if index == row.index]
        kinds = [item.kind for item in work]
        assert kinds.count("refresh") == forward["fwd_extra_1st_chunk"]
        assert kinds.count("near_clean") == forward["distill_nearly_clean_chunk"]
        times = [0.9999] * kinds.count("refresh") + [step.t for step in row.steps]
        assert times == pytest.approx(forward["timestep"], rel=1e-6, abs=1e-7)
        assert row.interval == forward["distill_interval"]
        # Refresh first, then the active chunks, as upstream lays them out.
        attended = [item for item in work if item.kind != "near_clean"]
        per_key = attended[0].self_attention_flops / (forward["kv_range"][0][1] - forward["kv_range"][0][0])
        ranges = [item.self_attention_flops / per_key for item in attended]
        assert ranges == [end - start for start, end in forward["kv_range"]]
        assert [item.chunk for item in attended] == [end // 72 - 1 for _, end in forward["kv_range"]]


@pytest.mark.parametrize("run", REUSED)
def test_chunkwise_reuse_matches_the_official_code(run):
    generation, trace = golden_generation(run, published(run)), Trace()
    latents = latents_of(generation, trace)
    assert trace.computed_rows() == [step["computed"] for step in decisions(run)]
    rel = 1e-3 if distilled(run) else 1e-4
    entries = iter(trace.entries)
    last = len(decisions(run)) - 1
    for step in decisions(run):
        facts = zip(step["active"], step["reuse"], step["rel_l1"], step["accumulated_after"], strict=True)
        for chunk, reused, distance, accumulated in facts:
            entry = next(entries)
            assert (entry.row, entry.chunk) == (step["step"], chunk)
            assert entry.action == ("reuse" if reused else "compute")
            assert entry.accumulated == pytest.approx(accumulated, rel=rel)
            if step["step"] < last:  # not recorded in the last row, which always computes
                assert entry.distance == (None if distance is None else pytest.approx(distance, rel=rel))
    assert next(entries, None) is None
    assert_latents(latents, run)


def test_runs_differ_by_what_the_switches_say():
    """The goldens with the near-clean copy kept and dropped are far apart, so agreeing with both means something."""
    kept, dropped = (tensors(f"g_flowcache_nearclean_{kind}_mlp")["out.final_latents"] for kind in ("kept", "dropped"))
    assert (kept - dropped).abs().max() > 0.1
