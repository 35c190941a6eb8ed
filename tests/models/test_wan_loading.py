"""Causal Wan from a checkpoint: every layout gives the same model, which samples as its release does."""

from __future__ import annotations

import json

import pytest
import torch

from flowcache.method import VANILLA
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan import Sampling, Wan
from flowcache.models.wan.checkpoint import sampling_of
from flowcache.sampler import sample
from tests.models.wan_files import averaged, write_base, write_diffusers, write_published

SMALL = {"height": 64, "width": 48}


def latents(model: Wan) -> torch.Tensor:
    generation = model.generation("a red circle", 21, VANILLA, 0, **SMALL)
    return torch.stack([latent for _, latent in sample(generation)])


@pytest.fixture
def published(tmp_path):
    """A file of Self-Forcing beside a Wan 2.1 in the original layout."""
    write_base(tmp_path / "Wan2.1-T2V-1.3B")
    return write_published(tmp_path / "checkpoints" / "self_forcing_dmd.pt", generator_ema=averaged())


def test_layouts_give_the_same_video(published, tmp_path):
    first = latents(Wan.from_pretrained(published))
    assert first.isfinite().all()
    assert torch.equal(first, latents(Wan.from_pretrained(published, base=tmp_path / "Wan2.1-T2V-1.3B")))
    write_diffusers(tmp_path / "folder")
    model = Wan.from_pretrained(tmp_path / "folder")
    assert model.vae is not None
    assert latents(model).shape == first.shape


def test_other_weights_of_a_file_are_taken_on_demand(tmp_path):
    write_base(tmp_path)
    path = write_published(tmp_path / "self_forcing_dmd.pt", generator_ema=averaged(), generator=averaged(0.01))
    assert not torch.equal(latents(Wan.from_pretrained(path)), latents(Wan.from_pretrained(path, weights="generator")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self_forcing_dmd.pt", {}),
        ("longlive_base.pt", {"window_frames": 12, "sink_frames": 3}),
        ("rolling_forcing_dmd.pt", {"rolling": True, "window_frames": 21, "steps": (1000, 800, 600, 400, 200)}),
        ("mine.pt", {}),
    ],
)
def test_a_release_samples_as_published(tmp_path, name, expected):
    sampling = sampling_of(tmp_path / name)
    assert {key: getattr(sampling, key) for key in expected} == expected
    assert expected or sampling == Sampling()
    (tmp_path / "sampling.json").write_text(json.dumps({"shift": 3.0}), encoding="utf-8")
    assert sampling_of(tmp_path / name) == Sampling(shift=3.0)


def test_settings_that_are_none(tmp_path):
    (tmp_path / "sampling.json").write_text(json.dumps({"steps": [3, 2]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"sampling\.json does not hold sampling settings \(steps="):
        sampling_of(tmp_path / "self_forcing_dmd.pt")


def test_without_a_base_it_says_where_one_is_looked_for(tmp_path):
    path = write_published(tmp_path / "self_forcing_dmd.pt", generator_ema=averaged())
    with pytest.raises(CheckpointError, match="VAE"):
        Wan.from_pretrained(path)


def test_a_vae_of_other_latents_is_refused_before_anything_is_loaded(tmp_path):
    directory = write_diffusers(tmp_path / "folder")
    config = json.loads((directory / "vae" / "config.json").read_text(encoding="utf-8"))
    (directory / "vae" / "config.json").write_text(json.dumps(config | {"z_dim": 8}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"makes latents of 16 channels and the VAE .* decodes 8"):
        Wan.from_pretrained(directory)
