"""What callers give: numpy's numbers and frames are taken as torch's and Python's are, and the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.inputs import given_frames, plain
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from tests.methods import vanilla
from tests.models.skyreels_pipeline import write_checkpoint

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)


def test_numpys_numbers_become_pythons():
    assert plain([np.int64(3), (np.float32(0.5), "a"), None]) == [3, (0.5, "a"), None]
    assert type(plain(np.uint8(7))) is int
    assert type(plain(np.bool_(True))) is bool
    assert plain(np.array([5, 4])) == [5, 4]
    prompt = "text"
    assert plain(prompt) is prompt


@pytest.mark.parametrize(
    "frames",
    [
        torch.from_numpy(FRAMES),
        FRAMES,
        FRAMES[:, :, ::-1][:, :, ::-1],
        np.asfortranarray(FRAMES),
        np.frombuffer(FRAMES.tobytes(), np.uint8).reshape(FRAMES.shape),  # read-only, as of a reader
    ],
    ids=["torch", "numpy", "mirrored twice", "other order", "read-only"],
)
@pytest.mark.filterwarnings("error")
def test_frames_are_taken_of_numpy_and_torch(frames):
    video = given_frames(None, frames, 32, 48)
    assert torch.equal(video, torch.tensor(FRAMES))
    image = given_frames(frames[2], None, 32, 48)
    assert torch.equal(image, torch.tensor(FRAMES[2:3]))


def test_a_mirrored_image_is_taken_as_it_shows():
    assert torch.equal(given_frames(FRAMES[0, :, ::-1], None, 32, 48)[0], torch.tensor(FRAMES[0]).flip(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": FRAMES[0], "prefix_video": FRAMES}, "give an image or a prefix video, not both"),
        ({"image": FRAMES}, r"image must be uint8 \[32, 48, 3\], of torch or numpy \(resize it first\), got uint8 \["),
        ({"image": FRAMES[0].astype(np.float32)}, r"image must be .*, got float32 \[32, 48, 3\]"),
        ({"image": torch.zeros(32, 48, 3)}, r"image must be .*, got float32 \[32, 48, 3\]"),
        ({"image": FRAMES[0, ..., :1]}, r"got uint8 \[32, 48, 1\]"),
        ({"image": "cat.png"}, r"image must be .*, got str \[\]"),
        ({"prefix_video": FRAMES[0]}, r"prefix_video must be uint8 \[F, 32, 48, 3\]"),
        ({"prefix_video": FRAMES[:, :16]}, r"got uint8 \[8, 16, 48, 3\]"),
        ({"prefix_video": list(FRAMES)}, r"prefix_video must be .*, got list \[\]"),
    ],
)
def test_other_frames_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        given_frames(**{"image": None, "prefix_video": None} | given, height=32, width=48)


def test_nothing_given_is_nothing():
    assert given_frames(None, None, 32, 48) is None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    skyreels = write_checkpoint(tmp_path_factory.mktemp("skyreels"))
    return {
        "magi": Magi.from_pretrained(ROOT / "experiments" / "embedded" / "magi"),
        "skyreels": SkyReels.from_pretrained(skyreels),
    }


@pytest.mark.parametrize(
    ("name", "options", "as_numpy"),
    [
        (
            "magi",
            {"num_frames": 24, "num_steps": 8, "height": 32, "width": 48, "noise2clean_kvrange": [2, 1], "shift": 2.5},
            {"noise2clean_kvrange": np.array([2, 1]), "shift": np.float32(2.5)},
        ),
        (
            "skyreels",
            {"num_frames": 13, "num_steps": 2, "height": 32, "width": 48, "guidance_scale": 2.5},
            {"guidance_scale": np.float32(2.5)},
        ),
    ],
)
def test_a_generation_takes_numpys_frames_and_numbers(models, name, options, as_numpy):
    numbers = {key: np.int64(value) for key, value in options.items() if isinstance(value, int)} | as_numpy
    given = [(torch.from_numpy(FRAMES[0]), 7, options), (FRAMES[0], np.uint32(7), numbers)]
    videos = [
        torch.cat(list(generate(models[name], "a red circle", method=vanilla(), seed=seed, image=image, **own)))
        for image, seed, own in given
    ]
    assert torch.equal(*videos)


def test_seeds_of_random_weights_may_be_numpys():
    one, same = (Magi.from_random(checkpoint=ROOT / "experiments/embedded/magi", seed=s) for s in (3, np.int32(3)))
    assert torch.equal(one.dit.x_embedder.weight, same.dit.x_embedder.weight)
