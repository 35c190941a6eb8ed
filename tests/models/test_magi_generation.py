"""One video in the making: guidance, given frames, caches, decoding, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.kv.cache import KvCache
from flowcache.models.magi.attention import Member
from flowcache.models.magi.generation import MagiGeneration
from flowcache.models.magi.vae import MagiVae, Tiling, VaeConfig
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import by_row, chunkwise, vanilla
from tests.models.magi_goldens import GUIDANCE_3, golden_dit, latents_of, null_caption, small_generation

VANILLA = vanilla()
TOKENS = 24


def frames(*chunks: int) -> slice:
    return slice(6 * chunks[0], 6 * chunks[-1] + 6)


def guided(previous_scale: float, text_scale: float, **settings) -> MagiGeneration:
    scales = {"prev_chunk_scales": (previous_scale,) * 5, "text_scales": (text_scale,) * 5}
    return small_generation(VANILLA, cfg_number=3, **scales, **settings)


def first_velocity(generation: MagiGeneration) -> Tensor:
    row = generation.schedule.rows[0]
    generation.start(SectionClock("cpu"))
    generation.begin_row(row)
    generation.compute(row, Decision(row.chunks))
    return generation.velocity(0)


# Guidance of three passes: v = (1 - p) alone + (p - w) with history + w with history and text.


def by_hand(kind: str, num_chunks: int) -> Tensor:
    """Final latents of a run whose velocity is one pass only, written out directly on the network.

    A finished chunk's keys and values come from the null pass. Only in the row that refreshes it does the captioned
    pass see the chunk as it encodes it itself: null caption, condition not dropped.
    """
    dit, given = golden_dit("mlp_base"), guided(1.0, 1.0, num_chunks=num_chunks)
    latents, null = given.latents.clone(), null_caption(dit)
    c = dit.config
    text_cache, null_cache = (
        KvCache(c.num_layers, c.num_query_groups, c.kv_channels, TOKENS, num_chunks) for _ in range(2)
    )
    cache = {"text": text_cache, "history": null_cache, "alone": None}[kind]
    clean, dropped, kept = torch.tensor([[0.9999]]), torch.tensor([[True]]), torch.tensor([[False]])
    refresh: tuple[int, ...] = ()
    for row in given.schedule.rows:
        for chunk in refresh:
            dit(latents[:, :, frames(chunk)], dit.gates(clean, dropped), [Member(chunk, null)], null_cache)
            dit(latents[:, :, frames(chunk)], dit.gates(clean, kept), [Member(chunk, null)], text_cache)
        captions = [given.captions[chunk] if kind == "text" else null for chunk in row.chunks]
        members = [Member(i, caption, alone=kind == "alone") for i, caption in zip(row.chunks, captions, strict=True)]
        times = torch.tensor([[step.t for step in row.steps]])
        flags = torch.full_like(times, kind != "text", dtype=torch.bool)
        velocity = dit(latents[:, :, frames(*row.chunks)], dit.gates(times, flags), members, cache)
        lengths = torch.tensor([step.t_next - step.t for step in row.steps]).repeat_interleave(6)
        latents[:, :, frames(*row.chunks)] += velocity * lengths[:, None, None]
        for chunk in refresh:
            text_cache.copy_chunk_from(null_cache, chunk)
        refresh = row.finished
    return latents


PASSES = [("text", 1.0, 1.0), ("history", 1.0, 0.0), ("alone", 0.0, 0.0)]


@pytest.mark.parametrize(("kind", "previous_scale", "text_scale"), PASSES)
def test_scales_that_leave_one_pass_give_that_pass(kind, previous_scale, text_scale):
    generation = guided(previous_scale, text_scale)
    velocity = first_velocity(generation)
    caption = generation.captions[0] if kind == "text" else generation.null_caption
    dropped = torch.tensor([[kind != "text"]])
    first = generation.latents[:, :, :6]
    gates = generation.dit.gates(torch.zeros(1, 1), dropped)
    alone = generation.dit(first, gates, [Member(0, caption)])
    torch.testing.assert_close(velocity, alone, atol=1e-5, rtol=0)  # the generation reads its keys from a cache


@pytest.mark.parametrize(("kind", "previous_scale", "text_scale"), PASSES)
def test_a_run_of_one_pass_is_that_pass_written_out(kind, previous_scale, text_scale):
    latents = latents_of(guided(previous_scale, text_scale, num_chunks=4))
    torch.testing.assert_close(latents, by_hand(kind, 4), atol=1e-4, rtol=0)


def test_the_captioned_pass_alone_is_guidance_1_until_a_chunk_finishes():
    """One chunk never sees another's refreshed keys, so nothing distinguishes the two."""
    one_pass = latents_of(guided(1.0, 1.0, num_chunks=1))
    method = vanilla(near_clean=False)
    assert torch.equal(one_pass, latents_of(small_generation(method, num_chunks=1)))


def test_guidance_mixes_the_three_passes_by_its_scales():
    text, history, alone = (first_velocity(guided(p, w)) for p, w in ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0)))
    assert not torch.allclose(text, history, atol=1e-3)
    mixed = first_velocity(guided(1.5, 7.5))
    expected = (1 - 1.5) * alone + (1.5 - 7.5) * history + 7.5 * text
    torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=1e-5)


def test_guidance_looks_its_scales_up_by_each_chunks_time():
    """Text scale 0 up to t = 0.3 and 1 beyond: the first chunk follows its caption in its last two steps only."""
    scales = {"prev_chunk_scales": (1.0,) * 5, "text_scales": (0.0, 0.0, 0.0, 1.0, 1.0)}
    generation = small_generation(VANILLA, num_chunks=1, cfg_number=3, **scales)
    moved: list[Tensor] = []
    for _ in sample(generation, observe=lambda *_: moved.append(generation.latents.clone())):
        pass
    never: list[Tensor] = []
    without = guided(1.0, 0.0, num_chunks=1)
    for _ in sample(without, observe=lambda *_: never.append(without.latents.clone())):
        pass
    assert [torch.equal(a, b) for a, b in zip(moved, never, strict=True)] == [True] * 6 + [False] * 2


def test_the_captioned_cache_holds_the_null_passs_keys_of_refreshed_chunks():
    generation = small_generation(VANILLA, num_chunks=3, **GUIDANCE_3)
    latents_of(generation)
    captioned, null = generation.caches
    for layer in (1, 2):  # in the first layer, keys do not depend on the caption yet
        for first, last, same in ((0, 1, True), (2, 2, False)):
            pairs = zip(captioned.read(layer, first, last), null.read(layer, first, last), strict=True)
            assert all(torch.equal(a, b) == same for a, b in pairs)


# Given frames.


class LatentProbe:
    """Looks at the latents that every forward is given."""

    def __init__(self, generation: MagiGeneration) -> None:
        self.seen: list[Tensor] = []
        self.generation, self.compute = generation, generation.compute
        generation.compute = self

    def __call__(self, row, decision):
        self.seen.append(self.generation.latents.clone())
        return self.compute(row, decision)


@pytest.mark.parametrize("method", [VANILLA, chunkwise(threshold=0.1, warmup_steps=2)], ids=["vanilla", "flowcache"])
@pytest.mark.parametrize("runtime", [{}, GUIDANCE_3], ids=["guidance 1", "guidance 3"])
@pytest.mark.parametrize(
    ("prefix_frames", "keep", "first"), [(1, True, 0), (8, False, 1), (6, False, 1)], ids=["image", "partial", "whole"]
)
def test_given_frames_are_in_place_before_every_forward_and_after_the_last(method, runtime, prefix_frames, keep, first):
    generation = small_generation(method, num_chunks=4, prefix_frames=prefix_frames, keep_prefix_frames=keep, **runtime)
    noise = generation.latents.clone()
    probe = LatentProbe(generation)
    emitted = dict(sample(generation))
    assert list(emitted) == list(range(first, 4))
    assert len(probe.seen) == len(generation.schedule.rows) == 2 * (4 - first + 3)
    for latents in [*probe.seen, generation.latents]:
        assert torch.equal(latents[:, :, :prefix_frames], generation.prefix)
    given_here = prefix_frames - 6 * first
    if given_here:
        assert torch.equal(emitted[first][:, :given_here], generation.prefix[0, :, 6 * first :])
    moved = (generation.latents - noise)[:, :, prefix_frames:].abs().amax(dim=(0, 1, 3, 4))
    assert (moved > 0.01).all()


def test_given_chunks_are_encoded_once_and_shape_what_follows():
    trace = Trace()
    generation = small_generation(VANILLA, num_chunks=3, prefix_frames=8)
    assert generation.schedule.prefix_chunks == 1
    latents = latents_of(generation, trace)
    assert [work.chunk for row, work in trace.work if work.kind == "prefix"] == [0]
    assert generation.caches[0].clean_chunks == (0, 1, 2)
    other = small_generation(VANILLA, num_chunks=3, prefix_frames=8)
    other.prefix[:, :, :6] += 1.0
    assert not torch.allclose(latents_of(other)[:, :, 8:], latents[:, :, 8:], atol=1e-2)


def test_both_branches_hold_the_given_chunks_keys():
    generation = small_generation(VANILLA, num_chunks=3, prefix_frames=12, **GUIDANCE_3)
    generation.start(SectionClock("cpu"))
    captioned, null = generation.caches
    for layer in range(3):
        for a, b in zip(captioned.read(layer, 0, 1), null.read(layer, 0, 1), strict=True):
            assert a.abs().sum() > 0
            assert torch.equal(a, b)
    assert generation.kv_tokens == 2 * TOKENS


@pytest.mark.parametrize(("look_back", "same"), [(1, True), (8, False)])
def test_given_chunks_look_back_as_far_as_their_setting_says(look_back, same):
    """Keys of a later given chunk depend on an earlier one only if it is within reach."""
    keys = []
    for shift in (0.0, 1.0):
        generation = small_generation(VANILLA, num_chunks=3, prefix_frames=12, clean_chunk_kvrange=look_back)
        generation.prefix[:, :, :6] += shift
        generation.start(SectionClock("cpu"))
        keys.append(generation.caches[0].read(2, 1, 1)[0].clone())
    assert torch.equal(*keys) == same


# Decoding.


@pytest.fixture(scope="module")
def vae() -> MagiVae:
    torch.manual_seed(0)
    sizes = {"video_size": 8, "video_length": 12, "patch_size": 2, "patch_length": 4, "z_chans": 16}
    return MagiVae(VaeConfig(**sizes, embed_dim=64, depth=1, num_heads=2)).eval().requires_grad_(False)


def decoded(vae: MagiVae, **settings) -> tuple[MagiGeneration, dict[int, Tensor], dict[int, Tensor]]:
    generation = small_generation(VANILLA, num_steps=4, vae=vae, **settings)
    latents = dict(sample(generation))
    return generation, latents, {chunk: generation.decode(chunk, latent) for chunk, latent in latents.items()}


def pixels(vae: MagiVae, latent: Tensor) -> Tensor:
    """A chunk's frames in two halves of three latent frames, each decoded on its own."""
    halves = [vae.decode(half[None] / 0.18215)[0] for half in latent.split(3, dim=1)]
    video = torch.cat(halves, dim=1).clamp(-1, 1)
    return ((video + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def assert_frames(actual: Tensor, expected: Tensor) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, torch.uint8)
    assert (actual.int() - expected.int()).abs().max() <= 1  # rounding ties
    assert expected.float().std() > 1


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, {0: 24, 1: 24, 2: 24}),
        ({"prefix_frames": 1, "keep_prefix_frames": True}, {0: 24, 1: 24, 2: 24}),
        ({"prefix_frames": 1}, {0: 20, 1: 24, 2: 24}),
        ({"prefix_frames": 8}, {1: 16, 2: 24}),
        ({"prefix_frames": 8, "keep_prefix_frames": True}, {1: 16, 2: 24}),
        ({"prefix_frames": 6}, {1: 24, 2: 24}),
        ({"prefix_frames": 17}, {2: 4}),
    ],
    ids=["text", "image", "one frame to continue", "continuation", "keep is for images", "whole chunk", "last frame"],
)
def test_decodes_each_chunks_new_frames(vae, settings, counts):
    _, latents, videos = decoded(vae, **settings)
    assert {chunk: len(video) for chunk, video in videos.items()} == counts
    for chunk, video in videos.items():
        assert_frames(video, pixels(vae, latents[chunk])[24 - counts[chunk] :])


def test_decoding_tiles_follow_the_frame_rate(vae):
    generation, latents, _ = decoded(vae, num_chunks=1, fps=48)
    whole = vae.tiled_decode(latents[0][None] / 0.18215, Tiling(frames=24))[0]
    expected = (whole * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(generation.decode(0, latents[0]), expected)
    assert not torch.equal(expected, pixels(vae, latents[0]))


def test_decoding_without_a_vae_is_refused():
    with pytest.raises(RuntimeError, match="made without a VAE; give it one to decode frames"):
        small_generation(VANILLA).decode(0, torch.zeros(16, 6, 4, 4))


# Features, caches, captions.


def test_features_are_of_the_chunks_and_stay_as_they_were():
    generation = small_generation(VANILLA)
    latents = generation.latents.clone()
    for kind in ("latent", "embedded_latent"):
        features = generation.features(kind, (1, 2))
        before = features.clone()
        generation.latents += 1.0
        assert torch.equal(features, before)
        generation.latents -= 1.0
        assert len(features) == 2
    plain = generation.features("latent", (1, 2))
    for i, chunk in enumerate((1, 2)):
        torch.testing.assert_close(plain[i].flatten().sort()[0], latents[:, :, frames(chunk)].flatten().sort()[0])
        embedded = generation.dit.embed(latents[:, :, frames(chunk)])[0]
        torch.testing.assert_close(generation.features("embedded_latent", (1, 2))[i], embedded)


def test_an_unknown_distance_is_refused_by_name():
    method = chunkwise(threshold=0.1, warmup_steps=1, distance="rescaled_modulation", polynomial="skyreels_v2_1.3b")
    with pytest.raises(
        ValueError, match="distance='rescaled_modulation' is unknown to MAGI-1; choose 'embedded_latent'"
    ):
        next(iter(sample(small_generation(method))))


def test_every_chunk_follows_its_own_caption():
    reference = latents_of(small_generation(VANILLA, num_chunks=2))
    changed = small_generation(VANILLA, num_chunks=2)
    changed.captions = [changed.captions[0], changed.null_caption]
    latents = latents_of(changed)
    assert torch.equal(latents[:, :, :6], reference[:, :, :6])
    assert not torch.allclose(latents[:, :, 6:], reference[:, :, 6:], atol=1e-3)


@pytest.mark.parametrize(("runtime", "branches"), [({}, 1), (GUIDANCE_3, 2)])
def test_cache_bytes_are_those_of_the_video_whatever_has_run(runtime, branches):
    generation = small_generation(VANILLA, num_chunks=5, **runtime)
    a_chunk = branches * 2 * 3 * 2 * 16 * TOKENS * 4  # key and value, layers, heads, channels, tokens, float32
    used: Sequence[tuple[int, int]] = []
    for _ in sample(generation, observe=lambda row, _: used.append((row.chunks[-1], generation.kv_bytes_used))):
        assert generation.kv_bytes_allocated == 5 * a_chunk
    assert used == [(newest, (newest + 1) * a_chunk) for newest, _ in used]


@pytest.mark.parametrize(("skipped", "refreshed_in"), [((), [8]), ((8,), [9]), ((8, 9), [])])
def test_a_pending_refresh_waits_for_a_row_that_computes(skipped, refreshed_in):
    """Nothing reads a finished chunk's keys in a row without a forward, so no forward is spent on them there."""
    method = by_row(lambda row: Decision(() if row.index in skipped else row.chunks))
    trace, generation = Trace(), small_generation(method, num_chunks=2)
    latents_of(generation, trace)
    assert [row.index for row in generation.schedule.rows if row.finished] == [7, 9]
    assert [row for row, work in trace.work if work.kind == "refresh"] == refreshed_in
    assert not [work for row, work in trace.work if row in skipped]


def test_the_near_clean_copy_runs_only_where_the_oldest_chunk_computes():
    """Where it reuses there is nothing to mix the copy with, and upstream runs none either."""
    skipped = {6, 9}  # rows in which the oldest chunk is nearly clean
    method = by_row(lambda row: Decision(row.chunks[1:] if row.index in skipped else row.chunks))
    trace = Trace()
    latents_of(small_generation(method, near_clean_threshold=0.3), trace)
    near_clean = {row for row, work in trace.work if work.kind == "near_clean"}
    # The last two of a chunk's eight steps lie beyond t = 0.3, and there it is the oldest.
    assert near_clean == {6, 7, 8, 9, 10, 11} - skipped
    assert all(entry.action == "reuse" for entry in trace.entries if entry.row in skipped and entry.step >= 6)
