"""Checkpoints of links, as in the Hugging Face cache and as people make them to save disk: found and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from experiments.job.paths import ROOT
from flowcache.checkpoints import loaded_files, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels

EMBEDDED = ROOT / "experiments" / "embedded"
INSIDE = Path("ckpt/magi/4.5B_distill")  # of MAGI-1's repository


@pytest.fixture
def release(tmp_path) -> Path:
    """MAGI-1 as its repository lays it out: vae and t5 two folders above the weights' directory."""
    folder, source = tmp_path / "release", EMBEDDED / "magi"
    shutil.copytree(source / "inference_weight.distill", folder / INSIDE / "inference_weight.distill")
    for name in ("config.json", "special_tokens.safetensors"):
        shutil.copy(source / name, folder / INSIDE)
    shutil.copytree(source / "vae", folder / "ckpt" / "vae")
    shutil.copytree(source / "t5", folder / "ckpt" / "t5" / "t5-v1_1-xxl")
    return folder


def in_hub_cache(source: Path, repository: Path) -> Path:
    """A snapshot: every file a link to a blob that has no telling name, or folder."""
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for i, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        shutil.copy(path, repository / "blobs" / f"{i:064x}")
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(path.relative_to(source).parts) + 1)
        link.symlink_to(f"{up}blobs/{i:064x}")
    return snapshot


def of_links(directory: Path, name: str) -> Path:
    """A folder that holds a link to each part of a checkpoint's."""
    folder = directory.parent / name
    folder.mkdir()
    for part in directory.iterdir():
        (folder / part.name).symlink_to(part)
    return folder


def assert_found(directory: Path) -> None:
    assert verify(directory).all_problems() == []
    assert len(loaded_files(directory)) == 9
    weights = Magi.from_pretrained(directory).vae.decoder.last_layer.weight
    assert torch.equal(weights, Magi.from_pretrained(EMBEDDED / "magi").vae.decoder.last_layer.weight)


@pytest.mark.parametrize("layout", ["link", "links", "hub", "link into hub", "links into hub"])
def test_magi_finds_its_parts_through_links(tmp_path, monkeypatch, release, layout):
    directory = release / INSIDE
    if "hub" in layout:
        directory = in_hub_cache(release, tmp_path / "models--sand-ai--MAGI-1") / INSIDE
    if layout.startswith("links"):
        directory = of_links(directory, "elsewhere").rename(tmp_path / "elsewhere")
    elif layout.startswith("link"):
        (tmp_path / "elsewhere").symlink_to(directory)
        directory = tmp_path / "elsewhere"
    assert_found(directory)
    monkeypatch.chdir(directory.parent)
    assert_found(Path(directory.name))


def test_what_lies_in_a_directory_comes_before_what_its_links_lead_to(release):
    (release / "other").mkdir()
    link = release / "other" / "link"
    link.symlink_to(release / INSIDE)
    shutil.copytree(release / "ckpt" / "vae", release / "other" / "vae")
    config = json.loads((release / "other" / "vae" / "config.json").read_text(encoding="utf-8"))
    (release / "other" / "vae" / "config.json").write_text(json.dumps(config | {"mine": True}), encoding="utf-8")
    assert loaded_files(link)["vae/config.json"] == release / "other" / "vae" / "config.json"


@pytest.mark.parametrize("layout", ["link", "links", "hub"])
def test_skyreels_loads_through_links(tmp_path, layout):
    source = shutil.copytree(EMBEDDED / "skyreels", tmp_path / "plain")
    if layout == "hub":
        directory = in_hub_cache(source, tmp_path / "models--Skywork--SkyReels-V2")
    elif layout == "links":
        directory = of_links(source, "links")
    else:
        directory = tmp_path / "link"
        directory.symlink_to(source)
    assert verify(directory).all_problems() == []
    assert loaded_files(directory).keys() == loaded_files(source).keys()
    SkyReels.from_pretrained(directory)


def test_a_vae_of_another_rate_is_refused(tmp_path):
    """Its chunks would have another number of frames than MAGI-1's."""
    directory = shutil.copytree(EMBEDDED / "magi", tmp_path / "magi")
    config = json.loads((directory / "vae" / "config.json").read_text(encoding="utf-8"))
    config["ddconfig"] |= {"patch_length": 2, "video_length": 6}
    (directory / "vae" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = "is of a VAE of 2 pixel frames a latent frame, and MAGI-1's has 4; download the VAE that belongs"
    with pytest.raises(CheckpointError, match=message):
        Magi.from_pretrained(directory)
    assert any("is of a VAE of 2 pixel frames" in problem for problem in verify(directory).all_problems())
