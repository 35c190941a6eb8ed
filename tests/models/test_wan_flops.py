"""Causal Wan's compute and memory at the real size: a dry run, the formula, and the hand count agree."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.run.quick_shapes import QuickShapes
from flowcache.models.wan import Wan
from flowcache.models.wan.config import NETWORKS
from flowcache.models.wan.generation import WanGeneration
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import every_k, vanilla
from tests.models.wan_goldens import manifest

HAND = manifest("flops_real_size")
TFLOP, GIB = 1e12, 2**30
TOKENS, WIDTH, LAYERS = 1560, 1536, 30
ROLLING = {"rolling": True, "steps": (1000, 800, 600, 400, 200), "window_frames": 21, "sink_frames": 3}
WINDOW = {f"window{w}": {"window_frames": w, "sink_frames": 3 * (w > 6)} for w in (6, 9, 12)}
# Caption keys and values count with a video, in the hand count.
ONCE = HAND["cross_attention_keys_once_TFLOP"]


@pytest.fixture(scope="module")
def model() -> Wan:
    return Wan.on_meta()


def counted(model: Wan, num_frames: int, **settings: Any) -> tuple[WanGeneration, Trace]:
    method, trace = settings.pop("method", vanilla()), Trace()
    generation = model.generation("a cat", num_frames, method, 0, **settings)
    with QuickShapes():
        for _, latent in sample(generation, trace):
            assert latent.is_meta
    return generation, trace


def by_formula(queries: int, keys: int, network: dict[str, Any] = NETWORKS["1.3B"]) -> float:
    """cost_and_methods.md: a forward of so many query and key frames, but for its timesteps."""
    q, k, ffn = TOKENS * queries, TOKENS * keys, network["ffn_dim"]
    linear = 2 * q * LAYERS * (6 * WIDTH**2 + 2 * WIDTH * ffn) + 2 * (2 * q * 64 * WIDTH)
    return linear + 4 * q * 512 * WIDTH * LAYERS + 4 * q * k * WIDTH * LAYERS


@pytest.mark.parametrize(
    ("case", "settings", "frames"),
    [
        ("self_forcing_81_frames_global", {}, 81),
        *((f"self_forcing_81_frames_{name}", settings, 81) for name, settings in WINDOW.items()),
        ("longlive_120_latent_frames_window12", WINDOW["window12"], 477),
        ("longlive_240_latent_frames_window12", WINDOW["window12"], 957),
        ("global_120_latent_frames", {}, 477),
    ],
)
def test_the_papers_accounting_is_the_hand_count_of_the_official_forwards(model, case, settings, frames):
    generation, trace = counted(model, frames, **settings)
    paper = generation.paper_flops(trace) / TFLOP
    assert paper + ONCE == pytest.approx(HAND[case]["total_TFLOP"], rel=2e-4)
    for block, expected in enumerate(HAND[case].get("per_block_TFLOP", ())):
        seen = generation.frame_window.encoding(3 * block + 3)
        charged = by_formula(3, generation.frame_window.key_frames(seen))
        assert 5 * charged / TFLOP == pytest.approx(expected, rel=2e-4)


def test_four_forwards_a_block_execute_what_the_last_clean_pass_is_less(model):
    _, trace = counted(model, 81)
    assert trace.flops / TFLOP == pytest.approx(
        HAND["self_forcing_81_frames_global_without_last_clean_pass_TFLOP"], rel=2e-4
    )
    # Exactly, by the formula: seven blocks of four steps, and six that are encoded, which need no head.
    denoise = sum(4 * by_formula(3, 3 * block) for block in range(1, 8))
    head = 2 * 3 * TOKENS * 64 * WIDTH
    refresh = sum(by_formula(3, 3 * block) - head for block in range(1, 7))
    assert trace.flops_by_kind()["denoise"] == denoise
    assert trace.flops_by_kind()["refresh"] == refresh


@pytest.mark.parametrize(("latents", "frames"), [("21", 81), ("126", 501)])
def test_rolling_chunks_are_the_hand_count(model, latents, frames):
    generation, trace = counted(model, frames, **ROLLING)
    expected = HAND["rolling_forcing_TFLOP"][f"{latents}_latent_frames"]
    assert generation.paper_flops(trace) / TFLOP + ONCE == pytest.approx(expected, rel=3e-4)
    assert trace.flops < generation.paper_flops(trace)  # nothing is encoded before it is finished


def test_a_row_of_rolling_chunks_is_the_hand_count(model):
    _, trace = counted(model, 501, **ROLLING)
    row, hand = [work for row, work in trace.work if row == 20], HAND["rolling_forcing_steady_window_TFLOP"]
    for kind, expected in (("denoise", hand["denoise"]), ("refresh", hand["clean"])):
        assert sum(work.flops for work in row if work.kind == kind) / TFLOP == pytest.approx(expected, rel=2e-4)


def test_frame_by_frame_is_the_hand_count(model):
    generation, trace = counted(model, 81, block_frames=1)
    expected = HAND["framewise_4_step_21_frames_TFLOP"]
    assert generation.paper_flops(trace) / TFLOP + ONCE == pytest.approx(expected, rel=2e-4)


def test_encoding_a_window_anew_for_a_new_prompt_is_the_hand_count(model):
    prompts, trace = [(0, "a cat"), (120, "a dog")], Trace()
    generation = model.generation(None, 237, vanilla(), 0, prompts=prompts, **WINDOW["window12"])
    for _ in sample(generation, trace):
        pass
    recached = trace.flops_by_kind()["recache"] / TFLOP + ONCE  # of the new prompt
    assert recached == pytest.approx(HAND["longlive_recache_of_12_frames_TFLOP"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "frames"),
    [
        ("cache_21_frames_GiB", {}, 81),
        ("window_12_frames_GiB", WINDOW["window12"], 81),
        ("window_9_frames_GiB", WINDOW["window9"], 81),
        ("window_12_frames_GiB", WINDOW["window12"], 957),
        ("global_120_frames_GiB", {}, 477),
    ],
)
def test_keys_and_values_take_what_the_window_takes_however_long_the_video(model, name, settings, frames):
    generation = model.generation("a cat", frames, vanilla(), 0, **settings)
    assert generation.kv_bytes_allocated / GIB == pytest.approx(HAND["kv_bytes"][name], rel=1e-3)


def test_rolling_chunks_hold_those_that_run_together_beside_the_window(model):
    """36 frames, where the published cache has 24 and makes room for the others in every layer; and one buffer."""
    generation = model.generation("a cat", 501, vanilla(), 0, **ROLLING)
    a_frame = HAND["kv_bytes"]["per_latent_frame"]
    assert generation.kv_bytes_allocated == 36 * a_frame + 21 * a_frame // LAYERS


def test_reused_steps_are_not_charged(model):
    generation, trace = counted(model, 81, method=every_k(every=2, warmup_steps=0))
    computed = trace.flops_by_kind()["denoise"]
    vanilla_trace = counted(model, 81)[1]
    assert computed == pytest.approx(0.75 * vanilla_trace.flops_by_kind()["denoise"])
    clean = generation.paper_flops(trace) - computed
    assert clean == pytest.approx(generation.paper_flops(vanilla_trace) / 5, rel=1e-3)
