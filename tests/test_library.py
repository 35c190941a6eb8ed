"""The library as people use it: told how far it is, stopped, seeded, and its frames as images and files."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import flowcache
from eval.video_io import read_video
from experiments.job.paths import ROOT
from flowcache import Method, export_to_video, generate, progress_bar, to_pil
from flowcache.progress import Progress
from tests.methods import every_k
from tests.models.wan_tiny import tiny_wan

EVERY_OTHER = every_k(every=2, warmup_steps=1)
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def model():
    return tiny_wan(solver="unipc", num_steps=4)


def video(model, **options) -> torch.Tensor:
    return torch.cat(list(generate(model, "a red circle", 21, options.pop("method", EVERY_OTHER), **SIZE, **options)))


def test_the_callback_is_told_every_row_and_what_computed(model):
    told: list[Progress] = []
    frames = video(model, callback=told.append)
    assert len(frames) == 21
    assert [each.row for each in told] == list(range(8))
    assert [each.computed == each.active for each in told] == 2 * [True, False, True, True]
    assert [each.finished for each in told if each.finished] == [(0,), (1,)]
    assert {(each.num_rows, each.num_chunks) for each in told} == {(8, 2)}


def test_it_ends_where_the_callback_says_false_and_leaves_the_model_whole(model):
    expected = video(model)
    seen: list[int] = []

    def stop(progress: Progress) -> bool:
        seen.append(progress.row)
        return progress.row < 4

    first = video(model, callback=stop)
    assert seen == [0, 1, 2, 3, 4]
    assert torch.equal(first, expected[:9])
    frames = generate(model, "a red circle", 21, EVERY_OTHER, **SIZE)
    assert torch.equal(next(frames), expected[:9])
    frames.close()  # or whoever takes the frames takes no more
    assert torch.equal(video(model), expected)


def test_a_generator_is_a_seed_and_moves_on(model):
    expected, random = video(model, seed=7), torch.Generator().manual_seed(7)
    assert torch.equal(video(model, seed=random), expected)
    assert not torch.equal(video(model, seed=random), expected)


def test_a_generator_elsewhere_is_refused(model):
    class Elsewhere(torch.Generator):
        device = torch.device("cuda", 0)

    with pytest.raises(ValueError, match="the generator is on cuda:0, and noise is drawn on the CPU"):
        video(model, seed=Elsewhere())


def test_the_bar_shows_rows_and_the_part_that_computed(model):
    shown = io.StringIO()
    video(model, callback=progress_bar(file=shown, mininterval=0))
    last = re.split(r"[\r\n]+", shown.getvalue().strip())[-1]
    assert "8/8" in last
    assert "computed=0.75" in last


def test_frames_as_images_and_as_a_file(model, tmp_path):
    frames = video(model)
    images = to_pil(frames)
    assert [image.size for image in images] == 21 * [(32, 32)]
    assert np.array_equal(np.asarray(images[3]), frames[3].numpy())
    whole = export_to_video(frames, tmp_path / "whole.mp4", fps=16)
    streamed = export_to_video(generate(model, "a red circle", 21, EVERY_OTHER, **SIZE), tmp_path / "streamed.mp4", 16)
    for path in (whole, streamed):
        read = read_video(path)
        assert read.shape == (21, 32, 32, 3)
        assert np.abs(read.astype(float) - frames.numpy()).mean() < 20  # H.264 of colours at half size
    assert {path.name for path in tmp_path.iterdir()} == {"whole.mp4", "streamed.mp4"}


def test_frames_that_are_none_are_refused_and_leave_no_file(tmp_path):
    for frames in (
        torch.zeros(2, 4, 4, 3),
        torch.zeros(2, 3, 4, 3, dtype=torch.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"frames must be uint8 \[F, H, W, 3\], H and W even"):
            export_to_video([frames], tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="there are no frames to write"):
        export_to_video([], tmp_path / "none.mp4")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install flowcache\[video\]"):
        export_to_video(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), tmp_path / "none.mp4")
    with pytest.raises(ImportError, match=r"pip install flowcache\[video\]"):
        to_pil(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


def test_an_image_of_pillow_is_one_of_numpy():
    model = tiny_wan(solver="unipc", num_steps=2, first_frame_alone=True)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    made = [
        torch.cat(list(generate(model, "a red circle", 13, Method(), image=given, **SIZE)))
        for given in (image, Image.fromarray(image), Image.fromarray(image).convert("RGBA"))
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_public_names_are_there_and_listed():
    for name in flowcache.__all__:
        assert getattr(flowcache, name).__doc__, name
    assert set(flowcache.__all__) <= set(dir(flowcache))
    library = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert [name for name in flowcache.__all__ if f"`{name}`" not in library] == []


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "flowcache.__version__"}
    assert f"version: {flowcache.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert import_module("flowcache").__version__.count(".") == 2


def test_every_public_name_is_type_checked_as_another_program_uses_it():
    used = (ROOT / "tests" / "typed_use.py").read_text(encoding="utf-8")
    assert [name for name in flowcache.__all__ if f"    {name},\n" not in used] == []
