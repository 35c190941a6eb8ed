"""The whole model on a tiny checkpoint: text, image and video in, frames out; and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowcache import generate
from flowcache.method import Method
from flowcache.models.skyreels import Sampling, SkyReels
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import chunkwise, every_k, vanilla
from tests.models.skyreels_pipeline import SETTINGS, write_checkpoint

PROMPT = "a red circle moves left"
METHOD = chunkwise(
    threshold=0.1, warmup_steps=1, distance="rescaled_modulation", polynomial="skyreels_v2_1.3b_retained"
)
VANILLA = vanilla()


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("skyreels"))


@pytest.fixture(scope="module")
def model(directory) -> SkyReels:
    return SkyReels.from_pretrained(directory)


def pieces(model: SkyReels, num_frames: int, method: Method = METHOD, seed: int = 0, **options) -> list[Tensor]:
    return list(generate(model, PROMPT, num_frames, method, seed, **options))


def picture(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["native", "causal", "cached"])
def test_a_dry_run_of_a_checkpoint_is_a_run_without_its_numbers(directory, model, attention):
    method, traces = vanilla(attention=attention), (Trace(), Trace())
    shapes = []
    for source, trace in zip((model, SkyReels.on_meta(checkpoint=directory)), traces, strict=True):
        generation = source.generation(PROMPT, 37, method, 0)
        shapes.append([latent.shape for _, latent in sample(generation, trace)])
    ran, dry = traces
    assert shapes[0] == shapes[1]
    assert dry.work == ran.work
    assert dry.entries == [replace(entry, kv_bytes=entry.kv_bytes // 2) for entry in ran.entries]
    assert dry.kv_bytes_allocated == ran.kv_bytes_allocated // 2  # bfloat16, as on a GPU


def test_settings_come_with_the_checkpoint(model):
    assert model.sampling == Sampling(**SETTINGS)
    assert (model.chunk_frames, model.frames_of(1), model.frames_of(5)) == (8, 5, 37)


@pytest.mark.parametrize("method", [METHOD, VANILLA, vanilla(attention="cached")])
def test_text_to_video_over_two_windows(model, method):
    frames = pieces(model, 37, method)
    assert [len(piece) for piece in frames] == [5, 8, 8, 8, 8]
    assert all(piece.dtype == torch.uint8 and piece.shape[1:] == (32, 32, 3) for piece in frames)
    again = pieces(model, 37, method)
    assert all(map(torch.equal, frames, again))
    other = torch.cat(pieces(model, 37, method, seed=1))
    assert not torch.equal(torch.cat(frames), other)


def test_prompts_and_negative_prompts_reach_the_video(model):
    base = torch.cat(pieces(model, 5, VANILLA))
    assert not torch.equal(base, torch.cat(list(generate(model, "a blue square", 5, VANILLA, 0))))
    assert not torch.equal(base, torch.cat(pieces(model, 5, VANILLA, negative_prompt="a red circle")))
    unguided = [pieces(model, 5, VANILLA, guidance_scale=1.0, negative_prompt=text) for text in ("a", "blue")]
    assert torch.equal(unguided[0][0], unguided[1][0])
    assert torch.equal(base, torch.cat(pieces(model, 5, VANILLA)))


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, [5, 8]), ({"causal_block_size": 1, "base_num_frames": 21, "overlap_history": 5}, [5, 4, 4])],
    ids=["part of a chunk", "a chunk"],
)
def test_image_to_video_shows_the_image_first(model, settings, counts):
    image = picture()
    frames = pieces(model, sum(counts), VANILLA, image=image, **settings)
    assert [len(piece) for piece in frames] == counts
    latent = model.vae.encode(image.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1)
    expected = (model.vae.decoder()(latent)[0, :, 0] * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    # Decoded with what follows it, so equal up to a level where rounding falls either way.
    torch.testing.assert_close(frames[0][0].int(), expected.permute(1, 2, 0).int(), atol=1, rtol=0)
    assert not torch.equal(torch.cat(frames), torch.cat(pieces(model, sum(counts), VANILLA, **settings)))


@pytest.mark.parametrize("method", [METHOD, VANILLA])
def test_a_video_is_continued_by_as_many_frames_as_asked_for(model, method):
    video = picture(11)
    frames = pieces(model, 32, method, prefix_video=video)
    assert [len(piece) for piece in frames] == [8, 8, 8, 8]  # two windows
    # Only the last five frames are looked at.
    same = pieces(model, 32, method, prefix_video=torch.cat([picture(3).flip(0), video[-5:]]))
    assert all(map(torch.equal, frames, same))
    other = pieces(model, 32, method, prefix_video=video.flip(0))
    assert not torch.equal(frames[0], other[0])


def test_chunks_that_nobody_decodes_are_decoded_for_the_next_window_and_kept(model):
    streamed = pieces(model, 37)
    generation = model.generation(PROMPT, 37, METHOD, 0)
    latents = dict(sample(generation))
    with torch.inference_mode():
        assert all(torch.equal(generation.decode(c, latents[c]), streamed[c]) for c in (0, 1, 2, 3, 4))


def test_windows_join_through_pixels(model):
    """The second window's given latents are those of frames shown, not the first one's latents."""
    generation = model.generation(PROMPT, 37, VANILLA, 0)
    ends: dict[int, Tensor] = {}
    frames = []
    observed = sample(generation, observe=lambda row, _: ends.__setitem__(row.window, generation.latents.clone()))
    for chunk, latent in observed:
        with torch.inference_mode():
            frames.append(generation.decode(chunk, latent))
    shown = torch.cat(frames[:3])[-5:].permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    given = ends[1][:, :, :2]
    assert not torch.equal(given, ends[0][:, :, -2:])
    # Up to the rounding of pixels to bytes, which the hand-over does not take.
    assert (given - model.vae.encode(shown)).abs().max() < 0.1 * (given - ends[0][:, :, -2:]).abs().max()


def test_the_number_of_frames_is_free_within_whole_chunks(model):
    for num_chunks in (1, 3, 4, 6):
        frames = pieces(model, model.frames_of(num_chunks), every_k(every=2, warmup_steps=1), num_steps=2)
        assert sum(map(len, frames)) == model.frames_of(num_chunks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 36}, "num_frames=36 does not fill whole chunks of 2 latent frames; try num_frames=37"),
        ({"num_frames": 10, "prefix_video": picture(5)}, "num_frames=10 more does not fill whole chunks"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"image": picture(), "prefix_video": picture(5)}, "give an image or a prefix video, not both"),
        ({"height": 40}, "40 x 32 pixels cannot be split into patches; use multiples of 16 and 16"),
        ({"image": picture()[:16]}, r"image must be uint8 \[32, 32, 3\], of torch or numpy \(resize it first\)"),
        ({"image": picture().float()}, "image must be uint8"),
        ({"num_frames": 8, "prefix_video": picture(4)}, "a prefix video of 4 frames is too short: 5 are looked at"),
        ({"causal_block": 2}, "has no setting 'causal_block'; did you mean causal_block_size"),
        ({"overlap_history": 6}, "overlap_history=6 is not whole chunks of 2 latent frames; try overlap_history=5"),
        ({"base_num_frames": 25}, "base_num_frames=25 is not whole chunks of 2 latent frames; try base_num_frames="),
        ({"overlap_history": 21}, "windows of 3 chunks cannot overlap by 3"),
        ({"num_steps": 0}, "num_steps=0 must be a whole number of at least 1"),
        ({"ar_step": 2.5}, "ar_step=2.5 must be a whole number of at least 0"),
        ({"addnoise_condition": 1000}, "addnoise_condition=1000 must lie below 1000"),
        ({"shift": 0.0}, "shift=0.0 must be positive"),
        ({"corrector": "none"}, "corrector='none' is unknown; choose 'sound' or 'published'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_requests_get_one_clear_message(model, options, message):
    request = {"prompt": PROMPT, "num_frames": 37, "method": VANILLA, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        model.generation(**request)


def test_given_frames_without_a_vae_are_refused(model):
    bare = SkyReels(model.network, None, model.text_encoder, model.sampling)
    with pytest.raises(ValueError, match="given frames must be encoded, and this model has no VAE"):
        bare.generation(PROMPT, 5, VANILLA, 0, image=picture())
    assert [latent.shape for _, latent in sample(bare.generation(PROMPT, 5, VANILLA, 0))] == [(16, 2, 4, 4)]
