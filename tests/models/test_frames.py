"""Frames and floats: exact values both ways, and no video of what is not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.frames import as_floats, as_uint8
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from tests.methods import vanilla
from tests.models.skyreels_pipeline import write_checkpoint

NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
MESSAGE = "the VAE's frames hold NaN or infinity, so that there is no video; check the checkpoint"


def test_every_byte_comes_back():
    frames = torch.arange(256, dtype=torch.uint8).reshape(4, 4, 16, 1).expand(-1, -1, -1, 3)
    video = as_floats(frames)
    assert (video.shape, video.dtype) == ((1, 3, 4, 4, 16), torch.float32)
    assert (video.min(), video.max()) == (-1, 1)
    back = as_uint8(video)
    assert back.dtype == torch.uint8
    assert (back.int() - frames.int()).abs().max() <= 1  # a byte's float may lie a rounding below it
    assert torch.equal(back[0, 0, :1], frames[0, 0, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_lies_outside_is_cut_off(dtype):
    values = torch.tensor([-7.0, -1.0, 0.0, 0.5, 1.0, 900.0], dtype=dtype)
    frames = as_uint8(values.expand(1, 3, 2, 1, -1))
    assert frames.shape == (2, 1, 6, 3)
    assert frames[0, 0, :, 0].tolist() == [0, 0, 127, 191, 255, 255]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_one_value_that_is_not_finite_is_refused(value):
    video = torch.zeros(1, 3, 2, 4, 4)
    video[0, 2, 1, 3, 0] = value
    with pytest.raises(FloatingPointError, match=MESSAGE):
        as_uint8(video)


def test_shapes_alone_are_not_looked_at():
    assert as_uint8(torch.empty(1, 3, 2, 4, 4, device="meta")).shape == (2, 4, 4, 3)


def chunks(model: Magi | SkyReels, num_frames: int, num_steps: int) -> list[Tensor]:
    return list(generate(model, "a red circle", num_frames, vanilla(), num_steps=num_steps))


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("channels", [slice(None), 1], ids=["all channels", "one"])
def test_a_vae_that_overflows_makes_no_video(tmp_path, value, channels):
    """As in half precision; SkyReels-V2 cuts to [-1, 1], where infinity would be white and black."""
    magi = Magi.from_pretrained(ROOT / "experiments" / "embedded" / "magi")
    skyreels = SkyReels.from_pretrained(write_checkpoint(tmp_path))
    assert (len(chunks(magi, 24, 4)), len(chunks(skyreels, 5, 1))) == (1, 1)
    magi.vae.decoder.last_layer.bias[channels] = value
    skyreels.vae.vae.decoder.conv_out.bias[channels] = value
    for model, num_frames, num_steps in ((magi, 24, 4), (skyreels, 5, 1)):
        with pytest.raises(FloatingPointError, match=MESSAGE):
            chunks(model, num_frames, num_steps)
