"""SkyReels-V2's generation: what must be equal to what, windows, given frames, guidance and caches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import zip_longest

import pytest
import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.models.wan.unipc import noise_levels
from flowcache.reuse.base import Decision
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import by_row, chunkwise, every_k, uniform, vanilla
from tests.models.skyreels_goldens import latents_of, small_generation

NATIVE, CAUSAL, CACHED = (vanilla(attention=kind) for kind in ("native", "causal", "cached"))
MODULATION = {"distance": "rescaled_modulation", "polynomial": "skyreels_v2_1.3b_retained"}
REUSING = chunkwise(threshold=0.1, warmup_steps=1, **MODULATION)
A_CHUNK = 8  # tokens
SETTINGS = {
    "two windows": {},
    "one window": {"num_chunks": 3},
    "one chunk": {"num_chunks": 1},
    "last window of two chunks": {"num_chunks": 4},
    "in step": {"ar_step": 0},
    "one after another": {"ar_step": 9},
    "frame by frame": {"causal_block_size": 1, "base_num_frames": 13, "overlap_history": 1, "num_chunks": 6},
    "no guidance": {"guidance_scale": 1.0},
    "noised condition": {"addnoise_condition": 20},
    "an image": {"given_latents": 1, "addnoise_condition": 20},
    "a given chunk": {"given_latents": 2},
    "a chunk and a half given": {"given_latents": 3, "addnoise_condition": 20},
}


def latents(method: Method, trace: Trace | None = None, **settings) -> Tensor:
    return latents_of(small_generation(method, **settings), trace)


@cache
def never_reusing(setting: str) -> Tensor:
    return latents(CACHED, **SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "method",
    [
        chunkwise(threshold=0.0, warmup_steps=0, **MODULATION),
        chunkwise(threshold=0.0, warmup_steps=0, distance="latent", last_step="global"),
        every_k(every=1, warmup_steps=0),
        uniform(threshold=0.0, warmup_steps=0, attention="cached", distance="latent"),
    ],
    ids=["flowcache", "flowcache latent global", "every_k", "teacache"],
)
def test_a_method_that_never_reuses_is_vanilla_kv_bit_for_bit(method, setting):
    assert torch.equal(latents(method, **SETTINGS[setting]), never_reusing(setting))


@pytest.mark.parametrize("setting", SETTINGS)
def test_never_reusing_with_refreshed_keys_is_block_causal_vanilla(setting):
    """The same sums in packs of other sizes, so equal up to rounding only."""
    torch.testing.assert_close(latents(CAUSAL, **SETTINGS[setting]), never_reusing(setting), atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["native", "causal"])
def test_uniform_reuse_that_never_reuses_is_vanilla_bit_for_bit(attention):
    method = uniform(threshold=0.0, warmup_steps=0, attention=attention, **MODULATION)
    assert torch.equal(latents(method), latents(vanilla(attention=attention)))


def test_attention_modes_and_stale_keys_are_apart():
    runs = [latents(NATIVE), latents(CAUSAL), latents(vanilla(attention="cached", refresh_clean_kv=False))]
    for a, b in zip(runs, runs[1:] + runs[:1], strict=True):
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("setting", ["two windows", "an image", "frame by frame", "in step"])
@pytest.mark.parametrize("distance", ["rescaled_modulation", "latent", "embedded_latent"])
def test_replaying_recorded_decisions_gives_the_same_latents_bit_for_bit(setting, distance):
    method = REUSING
    if distance != "rescaled_modulation":
        method = chunkwise(threshold=0.05, warmup_steps=1, distance=distance)
    trace, again = Trace(), Trace()
    expected = latents(method, trace, **SETTINGS[setting])
    assert {entry.action for entry in trace.entries} == {"compute", "reuse"}
    rows = trace.computed_rows()
    assert torch.equal(latents(replace(method, reuse=Replay(computed=rows)), again, **SETTINGS[setting]), expected)
    assert again.work == trace.work
    assert not torch.equal(never_reusing(setting), expected)


@pytest.mark.parametrize("method", [REUSING, NATIVE, uniform(threshold=0.3, warmup_steps=1, **MODULATION)])
def test_two_generations_in_a_row_and_in_turns_are_equal(method):
    first, second = latents(method), latents(method)
    assert torch.equal(first, second)
    assert not torch.equal(first, latents(method, seed=1))
    turns = [small_generation(m, seed=seed) for seed, m in enumerate((method, CACHED))]
    for _ in zip_longest(sample(turns[0]), sample(turns[1])):
        pass
    assert torch.equal(turns[0].latents, small_end(method, 0))
    assert torch.equal(turns[1].latents, small_end(CACHED, 1))


def small_end(method: Method, seed: int) -> Tensor:
    """The last window's latents of a generation that runs alone."""
    generation = small_generation(method, seed=seed)
    latents_of(generation)
    return generation.latents


def test_residuals_are_added_to_the_current_embedding_and_go_through_the_current_head():
    """A chunk that computes only its first step, by hand."""
    method = by_row(lambda row: Decision(row.chunks if row.oldest.step == 0 else ()))
    generation = small_generation(method, num_chunks=1, guidance_scale=1.0)
    seen: list[tuple[Tensor, Tensor]] = []
    network, before = generation.network, generation.latents.clone()

    def observe(row, decision):
        seen.append((generation.latents.clone(), generation._velocities[0].clone()))

    list(sample(generation, observe=observe))
    with torch.inference_mode():
        sampling = generation.sampling
        table = network.time_table(torch.tensor(noise_levels(sampling.num_steps, sampling.shift)[1]), 24)
        joint = network.joint(before, torch.tensor([999]), network.caption(generation._features[0]))
        torch.testing.assert_close(seen[0][1], joint, atol=1e-5, rtol=0)
        residual = None
        for step, (latent, (_, velocity)) in enumerate(zip([before, *(x for x, _ in seen)], seen, strict=False)):
            tokens = network.embed(latent)
            embedding = table.embedding[[step, step]]
            if residual is None:
                rope = tuple(part.flatten(0, 1) for part in network.rope_table(2, 4, 4))
                residual = generation_residual(network, generation, tokens, table.modulation[[0, 0]], rope)
            expected = network.head(tokens + residual, embedding, 4, 4)
            torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)


def generation_residual(network, generation, tokens, modulation, rope) -> Tensor:
    from flowcache.models.wan.attention import Member, Pack

    pack = Pack((Member(0, A_CHUNK, 0, 0),), rope)
    return network.blocks(tokens, modulation, generation._captions[0], pack) - tokens


def test_guidance_leads_from_the_negative_prompt_to_the_prompt_and_branches_never_mix():
    generation = small_generation(CACHED, num_chunks=1)
    velocities = []
    list(sample(generation, observe=lambda row, _: velocities.append(generation._velocities[0])))
    with torch.inference_mode():
        network, noise = generation.network, small_generation(CACHED, num_chunks=1).latents
        first = [network.joint(noise, torch.tensor([999]), caption) for caption in generation._captions]
    torch.testing.assert_close(velocities[0], first[1] + 6.0 * (first[0] - first[1]), atol=1e-4, rtol=0)
    prompt_cache, negative_cache = generation.caches
    assert not torch.equal(prompt_cache.read(1, 0, 0)[0], negative_cache.read(1, 0, 0)[0])


# Windows and given frames.


def test_a_window_begins_with_the_last_latents_of_the_one_before():
    generation, ends = small_generation(CACHED), {}
    finished = dict(sample(generation, observe=lambda row, _: ends.__setitem__(row.window, generation.latents.clone())))
    assert list(finished) == [0, 1, 2, 3, 4]
    assert torch.equal(ends[1][:, :, :2], ends[0][:, :, -2:])
    for chunk, latent in finished.items():
        window, position = (0, chunk) if chunk < 3 else (1, chunk - 2)
        assert torch.equal(latent, ends[window][0, :, 2 * position : 2 * position + 2])


def test_nothing_of_a_window_but_its_end_reaches_the_next():
    base, changed = small_generation(CACHED), small_generation(CACHED)
    changed.latents[:, :, :4] += 1.0

    def keep_end(row, _):
        if row.index == changed.schedule.windows[0].rows[-1]:
            changed.latents[:, :, -2:] = end

    end = dict(sample(base))[2][None]
    changed_latents = dict(sample(changed, observe=keep_end))
    assert not torch.equal(changed_latents[0], dict(sample(small_generation(CACHED)))[0])
    assert torch.equal(changed.latents, base.latents)


@pytest.mark.parametrize("method", [CACHED, NATIVE, CAUSAL], ids=["cached", "native", "causal"])
@pytest.mark.parametrize("given", [1, 2, 3])
def test_given_frames_stay_as_given_and_shape_what_follows(method, given):
    generation = small_generation(method, given_latents=given, addnoise_condition=20)
    kept = generation._first_given.clone()
    finished = {}
    for chunk, latent in sample(
        generation, observe=lambda row, _: None if row.window else check(generation.latents, kept)
    ):
        finished[chunk] = latent
    assert list(finished) == list(range(given // 2, 5))
    if given % 2:
        assert torch.equal(finished[given // 2][:, :1], kept[0, :, -1:])
    other = small_generation(method, given_latents=given, addnoise_condition=20)
    other._first_given = other.state.given = kept + 1.0
    other._open(0)
    assert not torch.allclose(latents_of(other)[:, 2:], torch.cat([*finished.values()], dim=1)[:, 2:], atol=1e-3)


def check(latents: Tensor, kept: Tensor) -> None:
    assert torch.equal(latents[:, :, : kept.shape[2]], kept)


def test_the_network_is_shown_given_frames_with_a_little_noise_and_their_own_timestep():
    generation = small_generation(CACHED, given_latents=3, addnoise_condition=20)
    state, noise = generation.state, generation._condition_noise[0]
    expected = 0.98 * generation._first_given + 0.02 * noise
    torch.testing.assert_close(state.shown(0), expected[:, :, :2])
    torch.testing.assert_close(state.shown(1)[:, :, :1], expected[:, :, 2:])
    assert torch.equal(state.shown(1)[:, :, 1:], generation.latents[:, :, 3:4])
    row = generation.schedule.rows[0]
    clean, waiting, given = 6, 7, 8
    assert [state.times(row, c).tolist() for c in (0, 1, 2)] == [[given] * 2, [given, 0], [waiting] * 2]
    assert [state.clean_times(c).tolist() for c in (0, 1, 2)] == [[given] * 2, [given, clean], [clean] * 2]


def test_a_generation_leaves_its_inputs_alone():
    generation = small_generation(REUSING, given_latents=3, addnoise_condition=20)
    inputs = [*generation._noise, generation._first_given, *generation._condition_noise]
    copies = [tensor.clone() for tensor in inputs]
    latents_of(generation)
    assert all(map(torch.equal, inputs, copies))


# Caches and work.


def test_a_finished_chunk_is_refreshed_with_the_next_row_that_computes_and_the_last_never():
    trace = Trace()
    latents(CACHED, trace)
    refreshed = [(row, work.chunk) for row, work in trace.work if work.kind == "refresh"]
    # Two branches; windows of rows 0-9 and 10-17; chunk 0 finishes in row 5, 1 in 7, 3 in 15, 2 and 4 last.
    assert refreshed == [(row, c) for row, c in ((6, 0), (8, 1), (16, 3)) for _ in (0, 1)]
    assert [(row, work.chunk) for row, work in trace.work if work.kind == "prefix"] == [(10, 2)] * 2


@pytest.mark.parametrize(("skipped", "refreshed_in"), [((6,), 7), ((6, 7), 8)])
def test_a_pending_refresh_waits_for_a_row_that_computes(skipped, refreshed_in):
    method, trace = by_row(lambda row: Decision(() if row.index in skipped else row.chunks)), Trace()
    latents(method, trace)
    assert next(row for row, work in trace.work if work.kind == "refresh" and work.chunk == 0) == refreshed_in


def test_clean_chunks_out_of_sight_change_nothing():
    """A chunk sees the chunks being denoised before it and one clean chunk; keys of earlier ones may be anything."""
    settings = {"num_chunks": 4, "base_num_frames": 29, "ar_step": 9, "clean_blocks_seen": 1}
    generation, trace = small_generation(CACHED, **settings), Trace()

    def spoil(row, _):
        for held in generation.caches:
            held._store._keys[:, :, :, : (row.oldest.chunk - 1) * A_CHUNK] = 1e3

    for _ in sample(generation, trace, observe=spoil):
        pass
    assert torch.equal(generation.latents, small_latents(CACHED, **settings))
    per_key = trace.work[-1][1].self_attention_flops // (2 * A_CHUNK)
    seen = {(w.kind, w.chunk): w.self_attention_flops // per_key // A_CHUNK for _, w in trace.work if w.chunk >= 0}
    assert seen == {("denoise", 0): 1, ("denoise", 1): 2, ("denoise", 2): 2, ("denoise", 3): 2} | {
        ("refresh", 0): 1,
        ("refresh", 1): 2,
        ("refresh", 2): 2,
    }


def small_latents(method: Method, **settings) -> Tensor:
    generation = small_generation(method, **settings)
    latents_of(generation)
    return generation.latents


@pytest.mark.parametrize(("settings", "branches"), [({}, 2), ({"guidance_scale": 1.0}, 1)])
def test_cache_bytes_are_those_of_the_longest_window_however_many_there_are(settings, branches):
    a_chunk = branches * 2 * 2 * 48 * A_CHUNK * 4  # key and value, layers, width, tokens, float32
    used = []
    for num_chunks in (3, 9):
        generation = small_generation(CACHED, num_chunks=num_chunks, **settings)
        assert generation.kv_bytes_allocated == 3 * a_chunk
        for _ in sample(generation, observe=lambda row, _, g=generation: used.append(g.kv_bytes_used)):
            pass
        assert generation.kv_bytes_allocated == 3 * a_chunk
        assert generation.kv_tokens == 3 * A_CHUNK
    assert max(used) == 3 * a_chunk
    assert min(used) == a_chunk
    assert small_generation(NATIVE).kv_bytes_allocated == small_generation(CAUSAL).kv_tokens == 0


# Distances.


def test_modulation_distances_follow_the_schedule_alone():
    """As published: every chunk, caption and noise gives the same distances."""
    runs = []
    for seed in (0, 1):
        trace = Trace()
        latents(REUSING, trace, seed=seed)
        runs.append([(entry.chunk, entry.step, entry.distance) for entry in trace.entries])
    assert runs[0] == runs[1]
    by_step: dict[int, float] = {}
    for _, step, distance in runs[0]:
        assert (distance is None) == (step == 0)
        if step:
            assert distance == pytest.approx(by_step.setdefault(step, distance), rel=1e-5)  # means of several rows


def test_features_are_of_the_chunks_and_stay_as_they_were():
    generation = small_generation(CACHED, given_latents=1, addnoise_condition=20)
    generation.start(SectionClock("cpu"))
    generation.begin_row(generation.schedule.rows[0])
    for kind in ("latent", "embedded_latent", "rescaled_modulation", "rescaled_time_embedding"):
        features = generation.features(kind, (1, 2))
        before = features.clone()
        generation.latents.add_(1.0)
        assert torch.equal(features, before)
        generation.latents.sub_(1.0)
        assert len(features) == 2
    assert torch.equal(generation.features("latent", (0,))[0], generation.state.shown(0).flatten())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: latents(chunkwise(threshold=0.1, warmup_steps=1, distance="colour")),
            "distance='colour' is unknown",
        ),
        (
            lambda: latents(every_k(every=2, warmup_steps=1, forecast=Hold(quantity="displacement"))),
            "quantity='displacement' does not exist on SkyReels-V2; choose 'resid",
        ),
        (
            lambda: latents(every_k(every=2, warmup_steps=1, attention="native")),
            "attention='native' computes a window as a whole on SkyReels-V2, and EveryK computes only some",
        ),
        (lambda: latents(NATIVE, clean_blocks_seen=1), "clean_blocks_seen=1 limits what is read from the cache"),
        (
            lambda: latents(by_row(lambda row: Decision(row.chunks, held=row.chunks), uses=("held",))),
            "SkyReels-V2 cannot follow ByRow with these options: it decides on chunks that do not move",
        ),
        (
            lambda: latents(by_row(lambda row: Decision(()))),
            "chunk 0 is to reuse and has computed nothing yet; a policy must compute a chunk's first step",
        ),
        (lambda: small_generation(CACHED).decode(0, torch.zeros(16, 2, 4, 4)), "made without a VAE; give it one"),
    ],
    ids=["distance", "reuse", "chunkwise without cache", "limit without cache", "held", "nothing to reuse", "no VAE"],
)
def test_what_cannot_be_is_refused_with_what_to_do(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()
