"""The whole model, tiny: text, image and video in, frames out; prompts that change; and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcache import generate
from flowcache.method import Method
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.models.wan import Sampling, Wan
from flowcache.models.wan.files import RELEASES
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import chunkwise, every_k, vanilla
from tests.models.wan_files import write_original
from tests.models.wan_goldens import manifest
from tests.models.wan_tiny import tiny_wan

PROMPT, OTHER = "a red circle moves left", "a blue square"
VANILLA = vanilla()
METHOD = chunkwise(threshold=0.9, warmup_steps=1, distance="latent")
SETTINGS = {"height": 32, "width": 32, "steps": (1000, 500)}
ALONE = {"first_frame_alone": True}
WINDOW = {"window_frames": 9, "sink_frames": 3}


@pytest.fixture(scope="module")
def model() -> Wan:
    return tiny_wan(**SETTINGS)


def pieces(
    model: Wan, num_frames: int, method: Method = METHOD, prompt: str | None = PROMPT, **options
) -> list[Tensor]:
    return list(generate(model, prompt, num_frames, method, options.pop("seed", 0), **options))


def picture(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(0, 256, (*shape, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", [METHOD, VANILLA, every_k(every=2, warmup_steps=1)])
@pytest.mark.parametrize(
    ("settings", "num_frames", "counts"),
    [
        ({}, 33, [9, 12, 12]),
        (ALONE, 25, [1, 12, 12]),
        ({"block_frames": 1}, 13, [1, 4, 4, 4]),
        ({"rolling": True, "window_frames": 9, "sink_frames": 3}, 45, [9, 12, 12, 12]),
        ({"solver": "unipc", "num_steps": 3, "guidance_scale": 3.0}, 21, [9, 12]),
    ],
)
def test_text_to_video_comes_chunk_by_chunk(model, method, settings, num_frames, counts):
    frames = pieces(model, num_frames, method, **settings)
    assert [len(piece) for piece in frames] == counts
    assert model.sampling.replaced(settings) == Sampling(**SETTINGS | settings)
    assert all(piece.dtype == torch.uint8 and piece.shape[1:] == (32, 32, 3) for piece in frames)
    assert all(map(torch.equal, frames, pieces(model, num_frames, method, **settings)))
    assert not torch.equal(torch.cat(frames), torch.cat(pieces(model, num_frames, method, seed=1, **settings)))


def test_frames_of_chunks(model):
    assert (model.chunk_frames, model.frames_of(1), model.frames_of(7)) == (12, 9, 81)
    alone = Wan(model.network, None, None, Sampling(**SETTINGS | ALONE))
    assert (alone.frames_of(1), alone.frames_of(3)) == (1, 25)


def test_prompts_reach_the_video_and_without_guidance_negative_ones_do_not(model):
    base = torch.cat(pieces(model, 9))
    assert not torch.equal(base, torch.cat(pieces(model, 9, prompt=OTHER)))
    assert torch.equal(base, torch.cat(pieces(model, 9, negative_prompt="a red circle")))
    guided = [pieces(model, 9, guidance_scale=3.0, negative_prompt=text)[0] for text in ("a", "blue")]
    assert not torch.equal(*guided)


def test_an_image_is_shown_first_and_leads_what_follows(model):
    image = picture()
    frames = pieces(model, 25, image=image, **ALONE)
    assert [len(piece) for piece in frames] == [13, 12]
    shown, video = frames[0][0], image.permute(2, 0, 1)[None, :, None] / 127.5 - 1
    expected = model.vae.decoder()(model.vae.encode(video))
    torch.testing.assert_close(
        shown.float(), (expected[0, :, 0].permute(1, 2, 0) * 127.5 + 127.5).clamp(0, 255).floor()
    )
    assert not torch.equal(torch.cat(frames), torch.cat(pieces(model, 25, image=picture(seed=4), **ALONE)))
    of_numpy = pieces(model, 25, image=image.numpy(), **ALONE)
    assert all(map(torch.equal, frames, of_numpy))


@pytest.mark.parametrize(("settings", "given"), [({}, 9), (ALONE, 13), ({"block_frames": 1}, 5), (ALONE, 1)])
def test_a_video_is_continued_by_new_frames_alone(model, settings, given):
    more = model.sampling.replaced(settings).block_frames * 4
    first, second = (picture(given, seed=seed) for seed in (3, 4))
    frames = pieces(model, 2 * more, prefix_video=first, **settings)
    assert [len(piece) for piece in frames] == [more, more]
    assert not torch.equal(torch.cat(frames), torch.cat(pieces(model, 2 * more, prefix_video=second, **settings)))


# Prompts that change.


@pytest.mark.parametrize("settings", [{}, WINDOW, WINDOW | {"renew_sink": True}])
def test_a_new_prompt_counts_from_the_first_chunk_that_begins_with_its_frame_or_later(model, settings):
    def video(*prompts: tuple[int, str]) -> list[Tensor]:
        return pieces(model, 57, prompt=None, prompts=list(prompts), **settings)

    alone = pieces(model, 57, **settings)
    same = video((0, PROMPT))
    assert all(map(torch.equal, alone, same))
    # Chunks begin with frames 0, 9, 21, 33 and 45.
    for start in (22, 33, np.int64(30)):
        changed = video((0, PROMPT), (start, OTHER))
        assert [torch.equal(a, b) for a, b in zip(alone, changed, strict=True)] == [True, True, True, False, False]
    twice = video((0, PROMPT), (33, OTHER), (45, PROMPT))
    assert [torch.equal(a, b) for a, b in zip(changed, twice, strict=True)] == [True] * 4 + [False]


def test_frames_of_prompts_are_those_to_generate(model):
    """After a prefix video they count from its end; with an image they count it."""
    prompts = [(0, PROMPT), (12, OTHER)]
    for options, number in (({"prefix_video": picture(9)}, 36), ({"image": picture()} | ALONE, 37)):
        changed = pieces(model, number, prompt=None, prompts=prompts, **options)
        alone = pieces(model, number, **options)
        assert [torch.equal(a, b) for a, b in zip(alone, changed, strict=True)] == [True, False, False]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([(0, "a"), (40, "red"), (40, "blue")], "prompts hold two for frame 40; give one, or another frame"),
        ([(0, "a"), (40, "red"), (20, "blue")], "prompts must rise by frames, and frame 20 comes after frame 40"),
        ([(9, "a")], "prompts begin at frame 9, and the frames before have none; begin with frame 0"),
        ([(0, "a"), (40, " ")], "the prompt is empty; say what the video shows"),
        ([], r"prompts=\[\] must be pairs of a first frame"),
        ([(0, "a"), (1.5, "red")], "must be pairs of a first frame, a whole number of at least 0, and a prompt"),
        ("a cat", "must be pairs of a first frame"),
        (
            [(0, "a"), (46, "red")],
            "no chunk begins from frame 46 on, so that its prompt would never count; chunks begin",
        ),
        ([(0, "a"), (22, "red"), (30, "blue")], "no chunk begins from frame 22 to 29.* frames 0, 9, 21, 33, 45"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        model.generation(None, 57, VANILLA, 0, prompts=prompts)


def test_a_prompt_beside_prompts_is_refused_and_so_is_none_at_all(model):
    with pytest.raises(ValueError, match="give prompt or prompts, not both"):
        pieces(model, 9, prompts=[(0, "a")])
    with pytest.raises(ValueError, match="the prompt is empty"):
        pieces(model, 9, prompt=None)


@pytest.mark.parametrize("other", [Magi.on_meta, SkyReels.on_meta])
def test_models_of_one_prompt_say_so(other):
    with pytest.raises(ValueError, match=r"makes a video of one prompt, and prompts=\.\.\. changes it on the way"):
        list(generate(other(), None, 24, VANILLA, prompts=[(0, "a"), (12, "b")]))


# What it refuses.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 10}, "num_frames=10 does not fill whole chunks of 3 latent frames; try num_frames=9"),
        ({"num_frames": 0}, "num_frames=0 does not fill whole chunks of 3 latent frames; try num_frames=9"),
        ({"num_frames": 9.0}, "num_frames=9.0 does not fill whole chunks"),
        ({"num_frames": 12} | ALONE, "after a first one alone; try num_frames=13"),
        ({"num_frames": 1, "image": picture()} | ALONE, "num_frames=1 does not fill.*try num_frames=13"),
        ({"num_frames": 13, "prefix_video": picture(9)}, "num_frames=13 more does not fill.*try num_frames=12"),
        (
            {"image": picture()},
            "an image is one latent frame, which does not fill a chunk of 3; choose first_frame_alone",
        ),
        (
            {"prefix_video": picture(10), "num_frames": 12},
            "a prefix video of 10 frames does not fill whole chunks; give 9,",
        ),
        (
            {"prefix_video": picture(13), "num_frames": 12},
            "a prefix video of 13 frames does not fill whole chunks; give 9,",
        ),
        ({"image": picture(), "prefix_video": picture(9)}, "give an image or a prefix video, not both"),
        ({"height": 40}, "40 x 32 pixels cannot be split into patches; use multiples of 16 and 16"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"num_step": 4}, "causal Wan has no setting 'num_step'; did you mean num_steps"),
        ({"window_frames": 4, "sink_frames": 3}, "window_frames=4 cannot hold the sink of 3.*choose at least 6"),
        ({"steps": (1000, 500, 750)}, r"steps=\[1000, 500, 750\] must fall from step to step"),
        ({"steps": (1000, 500, 500)}, "must fall from step to step"),
        ({"first_steps": (1000, 1000)}, r"first_steps=\[1000, 1000\] must fall from step to step"),
        ({"steps": ()}, r"steps=\(\) must be a list of numbers from 1000 \(noise\) to 0"),
        ({"steps": (2000, 500)}, "must be a list of numbers from 1000"),
        ({"steps": 4}, "steps=4 must be a list of numbers"),
        ({"steps": (750, 500)}, "must begin with 1000: a chunk begins as pure noise"),
        ({"steps": (1000, 937.5)}, "holds fractions, and with warp_steps true they are numbers of a grid"),
        ({"sink_frames": 3}, "sink_frames=3 is of a window .* give window_frames too, or sink_frames=0"),
        ({"relative_rope": True}, "relative_rope=True is of a window"),
        ({"window_frames": 0}, "window_frames=0 must be a whole number of at least 1"),
        ({"block_frames": True}, "block_frames=True must be a whole number"),
        ({"rolling": "yes"}, "rolling='yes' must be true or false"),
        ({"context_noise": 1000}, "context_noise=1000 must be a time of at least 0 and below 1000"),
        ({"shift": 0}, "shift=0 must be positive and finite"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        ({"solver": "euler"}, "solver='euler' is unknown; choose 'fresh_noise' or 'unipc'"),
        ({"solver": "unipc", "first_steps": (1000,)}, "solver='unipc' takes num_steps in every chunk"),
        (
            {"rolling": True},
            "rolling=true denoises 2 chunks of 3.*choose sink_frames=3 and window_frames of whole chunks",
        ),
        ({"rolling": True, "window_frames": 10, "sink_frames": 3}, "of whole chunks, at least 9"),
        (
            {"rolling": True, "window_frames": 9, "sink_frames": 3} | ALONE,
            "rolling=true runs equal chunks of equal steps",
        ),
        ({"num_frames": 4101, "height": 16, "width": 16}, "is longer than the network's 1024 positions"),
    ],
)
def test_bad_input_is_refused_before_any_work(model, options, message, monkeypatch):
    monkeypatch.setattr(model, "_encode", lambda *_: pytest.fail("work was begun"))
    options = {"num_frames": 9, "method": VANILLA, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        model.generation(PROMPT, **options)


def test_without_a_vae_given_frames_are_refused_and_latents_are_made(model):
    latents_only = Wan(model.network, None, None, model.sampling)
    with pytest.raises(ValueError, match="given frames must be encoded, and this model has no VAE"):
        latents_only.generation(PROMPT, 13, VANILLA, 0, image=picture(), **ALONE)
    generation = latents_only.generation(PROMPT, 9, VANILLA, 0)
    ((chunk, latent),) = sample(generation)
    assert (chunk, latent.shape) == (0, (16, 3, 4, 4))
    with pytest.raises(RuntimeError, match="made without a VAE"):
        generation.decode(chunk, latent)


def test_more_than_21_latents_without_a_window_grow(model):
    """Where the published cache of 21 frames ends in a crash."""
    trace = Trace()
    for _ in sample(model.generation(PROMPT, 93, VANILLA, 0), trace):
        pass
    assert max(entry.kv_tokens for entry in trace.entries) == 24 * 4


def test_random_and_unknown_networks():
    assert Wan.on_meta("14B").network.config.num_layers == 40
    with pytest.raises(ValueError, match=r"size='2B' is no released Wan 2\.1; there are 1\.3B, 14B"):
        Wan.on_meta("2B")
    with pytest.raises(
        ValueError, match="release='longlive2' is no published causal Wan; there are self_forcing, long"
    ):
        Wan.on_meta(release="longlive2")


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_says_how_it_samples(release):
    assert Wan.on_meta(release=release).sampling == Sampling().replaced(RELEASES[release].settings)
    assert Wan.on_meta().sampling == Sampling()


def test_a_checkpoint_s_sizes_and_settings_count_instead_whatever_lies_beside_it(tmp_path):
    published = write_original(tmp_path)
    whole = Wan.on_meta(checkpoint=published)
    assert (whole.network.config.num_layers, whole.sampling) == (
        manifest("forward")["config"]["num_layers"],
        Sampling(),
    )
    assert whole.vae.spatial_factor == 8
    alone = published.rename(tmp_path / "checkpoints" / "longlive_base.pt")
    (tmp_path / "wan_models").rename(tmp_path / "elsewhere")
    assert Wan.on_meta(checkpoint=alone).vae is None
    (tmp_path / "longlive").mkdir()
    for name in ("longlive_base.pt", "config.json"):
        (tmp_path / "checkpoints" / name).rename(tmp_path / "longlive" / name)
    assert Wan.on_meta(checkpoint=tmp_path / "longlive" / "longlive_base.pt").sampling.window_frames == 12


def test_a_window_of_all_is_none_in_place_of_a_checkpoint_s_own():
    own = Sampling(window_frames=12, sink_frames=3)
    assert own.replaced({"window_frames": None}) == own
    assert own.replaced({"window_frames": "all", "sink_frames": 0}) == Sampling()
    with pytest.raises(ValueError, match="window_frames='most' must be a whole number of at least 1"):
        own.replaced({"window_frames": "most"})


def test_a_number_of_steps_is_the_solver_s_alone():
    assert Sampling().replaced({"solver": "unipc", "num_steps": 8}).num_steps == 8
    with pytest.raises(
        ValueError, match="num_steps=8 is of solver='unipc', and steps with fresh noise are a list; choose"
    ):
        Sampling().replaced({"num_steps": 8})
