"""Causal Wan's generation: what must be equal to what, over all its samplers, and what methods do on it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import zip_longest

import pytest
import torch
from torch import Tensor

from baselines.every_k import EveryK
from eval.flops import ExecutedFlops, check
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.method import Method
from flowcache.models.wan.attention import Member, Pack
from flowcache.models.wan.generation import WanGeneration
from flowcache.models.wan.rotary import Rotary
from flowcache.models.wan.unipc import Solver, noise_levels
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import by_row, changed, chunkwise, every_k, vanilla
from tests.models.wan_goldens import golden_generation, golden_network, latents_of, small_generation

VANILLA = vanilla()
REUSING = chunkwise(threshold=0.9, warmup_steps=1, distance="latent")
MODULATION = {"distance": "rescaled_modulation", "polynomial": "skyreels_v2_1.3b"}
ROLLING = {"rolling": True, "window_frames": 15, "sink_frames": 3, "num_frames": 21}
UNIPC = {"solver": "unipc", "num_steps": 6, "num_frames": 6}
SETTINGS = {
    "self forcing": {},
    "window": {"window_frames": 6},
    "window and sink": {"window_frames": 9, "sink_frames": 3, "num_frames": 18},
    "relative rope": {"window_frames": 7, "sink_frames": 2, "num_frames": 18, "relative_rope": True},
    "frame by frame, first steps": {"block_frames": 1, "num_frames": 5, "first_steps": (1000, 750, 500, 250, 100)},
    "first frame alone": {"first_frame_alone": True, "num_frames": 10},
    "continuation": {"prefix_frames": 6, "window_frames": 9},
    "new prompt": {"prompt_starts": (6,), "window_frames": 9, "sink_frames": 3, "num_frames": 15},
    "rolling": ROLLING,
    "rolling continuation": ROLLING | {"prefix_frames": 3},
    "unipc": UNIPC,
    "unipc with guidance": UNIPC | {"guidance_scale": 3.0, "window_frames": 3},
    "one chunk": {"num_frames": 3, "window_frames": 9, "sink_frames": 3},
}


def latents(method: Method, trace: Trace | None = None, **settings) -> Tensor:
    return latents_of(small_generation(method, **settings), trace)


@cache
def vanilla_latents(setting: str) -> Tensor:
    return latents(VANILLA, **SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "method",
    [
        chunkwise(threshold=0.0, warmup_steps=0, distance="latent"),
        chunkwise(threshold=0.0, warmup_steps=0, last_step="global", **MODULATION),
        every_k(every=1, warmup_steps=0, forecast=Linear()),
        every_k(every=1, warmup_steps=0, forecast=Hold(quantity="clean")),
    ],
    ids=["flowcache latent", "flowcache modulation", "linear", "clean"],
)
def test_a_method_that_never_reuses_is_vanilla_bit_for_bit(method, setting):
    assert torch.equal(latents(method, **SETTINGS[setting]), vanilla_latents(setting))


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_forecast_makes_no_difference_where_nothing_is_skipped(setting):
    """But for rounding: of a velocity the clean latent is worked out when the step is taken."""
    method = replace(VANILLA, forecast=Hold(quantity="velocity"))
    torch.testing.assert_close(latents(method, **SETTINGS[setting]), vanilla_latents(setting), atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("quantity", ["clean", "velocity"])
@pytest.mark.parametrize("method", [REUSING, every_k(every=2, warmup_steps=1)], ids=["flowcache", "every_k"])
def test_replaying_recorded_decisions_gives_the_same_latents_bit_for_bit(method, setting, quantity):
    method = replace(method, forecast=Linear(quantity=quantity))
    trace, again = Trace(), Trace()
    expected = latents(method, trace, **SETTINGS[setting])
    assert expected.isfinite().all()
    replayed = replace(method, reuse=Replay(computed=trace.computed_rows()))
    assert torch.equal(latents(replayed, again, **SETTINGS[setting]), expected)
    assert again.work == trace.work
    if isinstance(method.reuse, EveryK):
        assert {entry.action for entry in trace.entries} == {"compute", "forecast"}
        assert not torch.equal(vanilla_latents(setting), expected)


@pytest.mark.parametrize("distance", ["latent", "embedded_latent", "rescaled_modulation", "rescaled_time_embedding"])
@pytest.mark.parametrize("setting", ["self forcing", "rolling", "unipc"])
def test_policies_decide_by_distances(distance, setting):
    trace = Trace()
    polynomial = (1.0, 0.0) if distance.startswith("rescaled") else None
    latents(
        chunkwise(threshold=0.9, warmup_steps=1, distance=distance, polynomial=polynomial), trace, **SETTINGS[setting]
    )
    measured = [entry.distance for entry in trace.entries if entry.step > 0]
    assert all(distance is not None and distance > 0 for distance in measured)


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_generations_in_turns_are_equal_to_each_alone(setting):
    turns = [small_generation(method, seed=seed, **SETTINGS[setting]) for seed, method in enumerate((VANILLA, REUSING))]
    for _ in zip_longest(*map(sample, turns)):
        pass
    for seed, method in enumerate((VANILLA, REUSING)):
        alone = small_generation(method, seed=seed, **SETTINGS[setting])
        latents_of(alone)
        assert torch.equal(turns[seed].latents, alone.latents)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", [VANILLA, every_k(every=2, warmup_steps=1)], ids=["vanilla", "every_k"])
def test_counts_are_what_executes_row_by_row(method, setting):
    generation, trace = small_generation(method, **SETTINGS[setting]), Trace()
    with ExecutedFlops() as executed:
        for _ in sample(generation, trace, executed.clock):
            pass
    assert check(executed, trace) == len(generation.schedule.rows)
    assert executed.by_section()["transformer"].flops == trace.flops


@pytest.mark.parametrize("skipped", [1, 2])
def test_a_reused_clean_latent_is_a_step_left_out(skipped):
    """So that lists of fewer steps are the baseline of whatever skips (with fresh noise, and only there)."""
    steps = (1000, 750, 500, 250)
    generation = small_generation(by_row(lambda row: Decision(() if row.steps[0].step == skipped else row.chunks)))
    fewer = small_generation(VANILLA, steps=tuple(step for i, step in enumerate(steps) if i != skipped))
    kept = [i for i in range(3) if i != skipped - 1]
    fewer.latents.copy_(generation.latents)
    fewer._features = generation._features
    fewer._steps._noise = generation._steps._noise[kept]
    # close, not equal: one list's time embeddings are a matrix of other rows, which may round otherwise
    torch.testing.assert_close(latents_of(generation), latents_of(fewer), atol=1e-5, rtol=0)


# Rolling chunks.


def test_a_skipped_chunks_keys_stay_from_its_last_computed_step():
    """What the others see does not shrink with what computes."""
    skips = by_row(lambda row: Decision(tuple(s.chunk for s in row.steps if s.step != 2)))
    generation, seen = small_generation(skips, **ROLLING), []
    passes = WanGeneration._passes

    def recorded(*arguments):
        found = passes(generation, *arguments)
        seen.append({generation.branches[0].cache.num_keys(*generation._member(p).keys) // 4 for p in found[-1:]})
        return found

    generation._passes = recorded
    latents_of(generation)
    window = generation.frame_window
    rows, start = generation.schedule.rows, generation.blocks.start
    wanted = [window.key_frames(window.denoising(start(r.chunks[0]), start(r.chunks[-1] + 1))) for r in rows]
    assert [count for (count,) in seen] == [
        keys for keys, row in zip(wanted, rows, strict=True) if any(s.step != 2 for s in row.steps)
    ]


def test_rows_that_compute_nothing_leave_what_is_to_be_encoded_to_the_next():
    idle = by_row(lambda row: Decision(row.chunks if len(row.steps) > 1 or row.steps[0].step == 0 else ()))
    trace = Trace()
    generation = small_generation(idle)
    latents_of(generation, trace)
    encoded = [(row, work.chunk) for row, work in trace.work if work.kind == "refresh"]
    assert encoded == [(4, 0), (8, 1), (12, 2)]


# The ODE's solver.


def test_the_solver_follows_the_flow_block_by_block():
    """Against whole block-causal forwards, and a solver by hand."""
    generation = small_generation(VANILLA, **UNIPC)
    network, noise = golden_network(), generation.latents.clone()
    caption = network.caption(generation._features[0])
    levels, times = noise_levels(6, 5.0)
    rope, latent = Rotary(network.config.attention_head_dim, 6, 2, 2, "cpu"), noise.clone()

    @torch.inference_mode()
    def velocity(block: int, time: float) -> Tensor:
        table = network.time_table(torch.tensor([0.0] * (3 * block) + [time] * 3))
        members = tuple(Member(i, 12, 0, i) for i in range(block + 1))
        x = network.embed(latent[:, :, : 3 * block + 3])
        x = network.blocks(x, table.modulation, caption, Pack(members, rope.frames(0, 3 * block + 2)))
        return network.head(x, table.embedding, 4, 4)[:, :, -3:]

    for block in (0, 1):
        solver, own = Solver(levels), slice(3 * block, 3 * block + 3)
        for time in times:
            clean = solver.clean(velocity(block, time), latent[:, :, own])
            latent[:, :, own] = solver.step(clean, latent[:, :, own].clone())
    torch.testing.assert_close(latents_of(generation), latent[0], atol=5e-5, rtol=0)
    assert (latent - noise).abs().max() > 0.1


def test_guidance_leads_away_from_the_negative_prompt():
    settings = UNIPC | {"guidance_scale": 3.0}
    guided, plain = small_generation(VANILLA, **settings), small_generation(VANILLA, **UNIPC)
    assert len(guided.branches) == 2
    guided._negative = guided._features[0]  # of two equal branches nothing is left but rounding
    torch.testing.assert_close(latents_of(guided), latents_of(plain), atol=2e-5, rtol=0)
    assert (latents(VANILLA, **settings) - latents(VANILLA, **UNIPC)).abs().max() > 0.01


def test_skipped_steps_of_the_solver_are_corrected_and_those_with_fresh_noise_are_refused():
    corrected = every_k(every=2, warmup_steps=1, forecast=Linear(correction=1))
    generation = small_generation(corrected, **UNIPC)
    out = latents_of(generation)
    assert generation.forecast_corrections > 0
    assert not torch.equal(out, latents(every_k(every=2, warmup_steps=1, forecast=Linear(quantity="clean")), **UNIPC))
    with pytest.raises(ValueError, match="correction=1 takes skipped steps again, and steps with fresh noise forget"):
        small_generation(corrected)


# The cache.


def budgeted(budget: str, **options) -> Method:
    return changed(VANILLA, budget=budget, select=Joint(), **options)


@pytest.mark.parametrize("setting", ["self forcing", "unipc"])
def test_a_budget_as_large_as_the_cache_changes_nothing(setting):
    assert torch.equal(latents(budgeted("9 chunks"), **SETTINGS[setting]), vanilla_latents(setting))


@pytest.mark.parametrize("settings", [{}, {"prefix_frames": 6}, {"guidance_scale": 2.0, "num_frames": 12} | UNIPC])
def test_a_small_budget_is_kept_however_long_the_video(settings):
    settings = settings | {"num_frames": 18}
    generation, trace = small_generation(budgeted("1 chunk"), **settings), Trace()
    assert latents_of(generation, trace).isfinite().all()
    assert generation.kv_compressions > 0
    a_chunk, branches = 12, len(generation.branches)
    assert max(entry.kv_tokens for entry in trace.entries) <= 3 * a_chunk  # one kept, one to be encoded, one computed
    longer = small_generation(budgeted("1 chunk"), **settings | {"num_frames": 27})
    assert longer.kv_bytes_allocated == generation.kv_bytes_allocated
    assert generation.kv_bytes_allocated < branches * small_generation(VANILLA, **settings).kv_bytes_allocated


@pytest.mark.parametrize("setting", ["window and sink", "relative rope", "rolling"])
def test_a_video_ten_times_as_long_takes_no_more_cache(setting):
    settings = {**SETTINGS[setting], "steps": (1000, 500)}
    frames = settings.pop("num_frames")
    short, long = (small_generation(VANILLA, num_frames=n, **settings) for n in (frames, 10 * frames))
    trace = Trace()
    assert latents_of(long, trace).isfinite().all()
    assert long.kv_bytes_allocated == short.kv_bytes_allocated
    assert trace.kv_bytes_used_peak <= trace.kv_bytes_allocated
    steady = [sum(w.flops for row, w in trace.work if row == r) for r in (20, len(long.schedule.rows) - 8)]
    assert steady[0] == steady[1]


def test_a_store_in_16_bits_goes_with_every_sampler():
    for setting in SETTINGS:
        method = replace(VANILLA, kv=KvPolicy(store=Bfloat16()))
        out = latents(method, **SETTINGS[setting])
        assert 0 < (out - vanilla_latents(setting)).abs().max() < 0.2, setting


def test_keys_of_the_last_noisy_step_make_another_video():
    stale = Method(reuse=Never(), refresh_clean_kv=False)
    trace = Trace()
    assert (latents(stale, trace) - vanilla_latents("self forcing")).abs().max() > 0.01
    assert "refresh" not in trace.flops_by_kind()


def test_a_sink_read_near_needs_no_position_of_the_whole_video():
    """LongLive's rotary positions by slot: the same numbers wherever the video stands."""
    for frames in (21, 45):
        generation = golden_generation("ll_relative_rope", VANILLA)
        assert generation.frame_window.denoising(frames, frames + 3).sink == "near"


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ({"window_frames": 6}, budgeted("1 chunk"), "budget='1 chunk' chooses among whole chunks.*window_frames=6"),
        ({"first_frame_alone": True, "num_frames": 10}, budgeted("1 chunk"), "first_frame_alone=True does not leave"),
        ({"prompt_starts": (6,)}, budgeted("1 chunk"), "drops keys that a new prompt encodes anew"),
        (ROLLING | {"prompt_starts": (6,)}, VANILLA, "rolling=true denoises chunks of several prompts together"),
        (
            {"window_frames": 9, "sink_frames": 3},
            changed(VANILLA, refresh_clean_kv=False),
            "a sink of 3 frames would keep them for the whole video; choose refresh_clean_kv=true",
        ),
        ({"num_frames": 11}, VANILLA, "11 latent frames are not whole blocks of 3"),
        ({"num_frames": 1026}, VANILLA, "a video of 1026 latent frames is longer than the network's 1024 positions"),
        (
            {"num_frames": 1026, "window_frames": 9, "sink_frames": 3},
            VANILLA,
            "its last frames see its sink; ask for fewer frames, or choose relative_rope=true",
        ),
        ({"prefix_frames": 12}, VANILLA, "a prefix of 4 chunks leaves nothing to generate in a video of 4"),
        ({}, every_k(every=2, warmup_steps=9), "warmup_steps=9 is more than the 4 steps of a chunk"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(settings, method, message):
    with pytest.raises(ValueError, match=message):
        small_generation(method, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"window_frames": 9},
        {"window_frames": 9, "sink_frames": 3, "relative_rope": True},
        {"rolling": True, "window_frames": 15, "sink_frames": 3},
    ],
)
def test_positions_past_the_table_are_no_matter_where_no_frame_sees_that_far(settings):
    generation = small_generation(VANILLA, num_frames=1026, **settings)
    assert generation.blocks.num_chunks == 342
