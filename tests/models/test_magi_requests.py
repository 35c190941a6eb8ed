"""What MAGI-1 is asked for: as many frames as asked, or one message with a request that works; and what it warns of."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.magi import Magi
from tests.methods import vanilla

EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
VANILLA = vanilla()


@pytest.fixture(scope="module")
def model() -> Magi:
    return Magi.from_pretrained(EMBEDDED)


def make(model: Magi, num_frames: int, **options) -> Tensor:
    return torch.cat(list(generate(model, "a red circle", num_frames, VANILLA, num_steps=4, **options)))


def video(num_frames: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, 32, 32, 3), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize(("given", "asked"), [(4, 20), (12, 12), (16, 8), (24, 24), (28, 20), (36, 36)])
def test_a_video_is_continued_by_as_many_frames_as_asked_for(model, given, asked):
    assert make(model, asked, prefix_video=video(given), height=32, width=32).shape == (asked, 32, 32, 3)


@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        (0, 24, "a prefix video of 0 frames does not fill whole latent frames of 4; try 4 frames and num_frames=20"),
        (1, 23, r"try 4 frames and num_frames=20, or a single frame as image$"),
        (
            13,
            11,
            "a prefix video of 13 frames does not fill whole latent frames of 4; try 12 frames and num_frames=12",
        ),
        (25, 23, "try 24 frames and num_frames=24"),
        (14, 10, "try 12 frames and num_frames=12"),
        (30, 240, "try 28 frames and num_frames=236"),
        (37, 11, "try 36 frames and num_frames=12"),
        (16, 9, "num_frames=9 after 16 given ones does not fill whole chunks of 24 frames; try num_frames=8"),
        (48, 1, "num_frames=1 after 48 given ones does not fill whole chunks of 24 frames; try num_frames=24"),
    ],
)
def test_prefix_lengths_that_do_not_fit_are_refused_with_some_that_do(model, given, asked, message):
    with pytest.raises(ValueError, match=message) as error:
        make(model, asked, prefix_video=video(given), height=32, width=32)
    frames = re.search(r"try (\d+) frames", str(error.value))
    given = int(frames[1]) if frames else given
    asked = int(re.search(r"num_frames=(\d+)(?!.*num_frames)", str(error.value))[1])
    model.generation("a red circle", asked, VANILLA, 0, prefix_video=video(given), height=32, width=32)


@pytest.mark.parametrize(
    ("fps", "width"), [(24, 6), (20, 5), (12, 6), (8, 6), (4, 6), (1, 2), (24, 1), (24, 4), (30, 7)]
)
def test_any_frame_rate_and_chunk_width_give_all_frames(model, fps, width):
    """Tiles of fps // 2 frames that are no whole latent frames, and single latent frames left over in a chunk."""
    runtime = replace(model.config.runtime, fps=fps, chunk_width=width)
    changed = Magi(
        replace(model.config, runtime=runtime), model.dit, model.vae, model.text_encoder, model.special_tokens
    )
    asked = 8 * width
    assert len(make(changed, asked, height=32, width=32)) == asked
    assert len(make(changed, asked - 4, prefix_video=video(4), height=32, width=32)) == asked - 4
    if width > 1:
        assert len(make(changed, asked, image=video(1)[0], height=32, width=32)) == asked
    else:
        with pytest.raises(ValueError, match="an image fills a whole chunk where chunk_width=1; repeat it four times"):
            make(changed, asked, image=video(1)[0], height=32, width=32)


def said(model: Magi, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generation("a red circle", 24, VANILLA, 0, **options)
    return [str(warning.message) for warning in caught]


def test_a_step_count_that_the_weights_were_not_trained_for_is_said(model):
    assert model.config.runtime.trained_num_steps == (64, 32, 16, 8)
    assert said(model) == said(model, num_steps=8) == []
    (message,) = said(model, num_steps=24)
    assert message.startswith("these weights were trained for num_steps=64, 32, 16 or 8, and num_steps=24 may")
    open_runtime = replace(model.config.runtime, trained_num_steps=())
    unknown = Magi(
        replace(model.config, runtime=open_runtime), model.dit, None, model.text_encoder, model.special_tokens
    )
    assert said(unknown, num_steps=24) == []


def test_guidance_that_does_not_belong_to_the_weights_is_said(model):
    (message,) = said(model, cfg_number=3)
    assert message.startswith("cfg_number=3 does not belong to distilled weights, which hold their guidance already")
    assert message.endswith("choose cfg_number=1")
    base = Magi.on_meta("4.5B")
    base.dit.config = replace(base.dit.config, distill=False)
    options = {"height": 32, "width": 32}
    (message,) = said(base, cfg_number=1, **options)
    assert message == ("cfg_number=1 does not belong to base weights, which hold no guidance; choose cfg_number=3")
    assert said(base, cfg_number=3, **options) == []
