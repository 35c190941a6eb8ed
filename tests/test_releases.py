"""Every release in small, in its official layout and names: it verifies, loads, and makes what its weights make."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from flowcache.checkpoints import loaded_files, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.magi import Magi
from flowcache.models.magi.checkpoint import RELEASES
from flowcache.models.magi.gates import GateTable
from flowcache.models.skyreels import SkyReels
from flowcache.models.skyreels.checkpoint import convert
from flowcache.models.skyreels.config import Sampling
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.modules import set_dtypes
from flowcache.models.wan.vae import WanVae
from flowcache.sampler import sample
from tests.methods import vanilla
from tests.models.releases import (
    PROMPT,
    small_skyreels,
    write_original_skyreels,
    write_rest,
    write_skyreels,
    write_small_magi,
)

RELEASED = [("4.5B", False), ("4.5B", True), ("24B", False), ("24B", True)]
SIZE = {"height": 32, "width": 32}


def assert_same(loaded: nn.Module, written: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """The same names, types and values; ``dtype`` is what all were turned into."""
    own = loaded.state_dict()
    assert own.keys() == written.keys()
    for name, value in written.items():
        torch.testing.assert_close(own[name], value.to(dtype or value.dtype), rtol=0, atol=0, msg=name)


def one_chunk(model: Magi | SkyReels, num_frames: int, **options: object) -> tuple[Tensor, Tensor]:
    """The only chunk of a video: its latent and its frames."""
    method = vanilla()
    generation = model.generation(PROMPT, num_frames, method, 0, **SIZE, **options)
    ((chunk, latent),) = sample(generation)
    with torch.inference_mode():
        return latent, generation.decode(chunk, latent)


# MAGI-1.


@pytest.mark.parametrize(("size", "distill"), RELEASED)
def test_a_small_magi_loads_and_makes_a_chunk(tmp_path, monkeypatch, size, distill):
    release, dit, vae, text = write_small_magi(tmp_path, size, distill)
    inventory = verify(release)
    assert inventory.all_problems() == []
    assert inventory.name == f"MAGI-1 of its own size, {'distilled' if distill else 'base'}"
    folder = "inference_weight.distill" if distill else "inference_weight"
    assert {f"{folder}/model.safetensors.index.json", f"{folder}/model-00004-of-00004.safetensors"} < {
        *loaded_files(release)
    }

    model = Magi.from_pretrained(release)
    released = RELEASES[size, distill]
    assert model.config.runtime == released.runtime
    assert model.config.dit == dit.config
    for name in ("gated_linear_unit", "half_channel_vae", "x_rescale_factor", "in_channels", "distill"):
        assert getattr(model.config.dit, name) == getattr(released.dit, name)
    assert_same(model.dit, dit.state_dict())
    assert_same(model.vae, vae.state_dict())
    assert_same(model.text_encoder.encoder, text.state_dict(), torch.float32)
    ids = model.text_encoder.tokenizer(PROMPT)["input_ids"]
    assert ids[-1] == 1  # </s>
    assert 2 not in ids  # <unk>

    forwards, asked, gates_of = [], [], GateTable.of
    model.dit.register_forward_pre_hook(lambda module, given: forwards.append(given))

    def of(self: GateTable, interval: float, times: list[float], drops: bool) -> Tensor:
        asked.append((times[0], drops))
        return gates_of(self, interval, times, drops)

    monkeypatch.setattr(GateTable, "of", of)
    latent, frames = one_chunk(model, 24, num_steps=8)
    assert latent.shape == (16, 6, 4, 4)
    assert frames.shape == (24, 32, 32, 3)
    passes = [(drops, members[0].alone) for (_, drops), (_, _, members, *_) in zip(asked, forwards, strict=True)]
    # Guidance 3: the caption, none with history, and none without history; guidance 1: the caption alone.
    a_row = [(False, False)] if distill else [(False, False), (True, False), (True, True)]
    assert passes == 8 * a_row
    near_clean = [any(member.alone for member in members) for _, _, members, *_ in forwards]
    assert not distill or near_clean == [t > 0.3 for t, _ in asked]

    direct = Magi(model.config, dit, vae, model.text_encoder, model.special_tokens)
    for own, expected in zip((latent, frames), one_chunk(direct, 24, num_steps=8), strict=True):
        assert torch.equal(own, expected)
    other = Magi(model.config, dit, vae, model.text_encoder, {k: -v for k, v in model.special_tokens.items()})
    assert not torch.equal(latent, one_chunk(other, 24, num_steps=8)[0])  # special tokens are seen


def test_the_folders_of_the_official_configurations_load_too(tmp_path):
    """load, vae_pretrained and t5_pretrained under downloads, special tokens in the repository's example folder."""
    release, dit, *_ = write_small_magi(tmp_path, "4.5B", False)
    repository, downloads = tmp_path / "MAGI-1", tmp_path / "MAGI-1" / "downloads"
    downloads.mkdir(parents=True)
    release = release.rename(downloads / "4.5B_base")
    (tmp_path / "ckpt" / "vae").rename(downloads / "vae")
    (tmp_path / "ckpt" / "t5").rename(downloads / "t5_pretrained")
    (repository / "example" / "assets").mkdir(parents=True)
    (tmp_path / "ckpt" / "special_tokens.npz").rename(repository / "example" / "assets" / "special_tokens.npz")
    assert verify(release).all_problems() == []
    assert_same(Magi.from_pretrained(release).dit, dit.state_dict())


def test_a_quantised_magi_is_refused_whatever_lies_beside(tmp_path):
    release, *_ = write_small_magi(tmp_path, "4.5B", True)
    (release / "inference_weight.distill").rename(release / "inference_weight.fp8.distill")
    for _ in ("with the configuration of the distilled release", "without any"):
        (problem,) = verify(release).all_problems()
        message = r"holds only quantised weights \(inference_weight.fp8.distill\), .* use the release in bfloat16"
        assert re.search(message, problem)
        with pytest.raises(CheckpointError, match=message):
            Magi.from_pretrained(release)
        (release / "config.json").unlink(missing_ok=True)


# SkyReels-V2.


def test_the_settings_are_those_that_upstream_recommends_for_chunks():
    """README of SkyworkAI/SkyReels-V2: asynchronous inference at 540P, and the steps of its table (30 by default)."""
    expected = {"num_steps": 50, "height": 544, "width": 960, "fps": 24, "shift": 8.0, "guidance_scale": 6.0}
    expected |= {"ar_step": 5, "causal_block_size": 5, "base_num_frames": 97, "overlap_history": 17}
    expected |= {"addnoise_condition": 20}
    assert {name: getattr(Sampling(), name) for name in expected} == expected
    # 720P: windows of 121 frames, which is whole chunks in step alone.
    large = {"height": 720, "width": 1280, "base_num_frames": 121}
    assert Sampling(**large, ar_step=0, causal_block_size=1).base_num_frames == 121
    with pytest.raises(ValueError, match=r"base_num_frames=121 is not whole chunks of 5 latent frames; try .*=117"):
        Sampling(**large)


def direct_skyreels(size: str, loaded: SkyReels) -> SkyReels:
    """The network as it was before it was written to bfloat16 files, and read into float32, with the loaded encoder."""
    transformer, vae, _ = small_skyreels(size)
    set_dtypes(transformer, torch.bfloat16)
    return SkyReels(SkyReelsNetwork(transformer.float()), WanVae(vae), loaded.text_encoder)


def assert_makes_what_was_written(model: SkyReels, size: str) -> None:
    direct = direct_skyreels(size, model)
    assert_same(model.network.transformer, direct.network.transformer.state_dict())
    assert_same(model.vae.vae, direct.vae.vae.state_dict())
    latent, frames = one_chunk(model, 17, num_steps=2)
    assert latent.shape == (16, 5, 4, 4)
    assert frames.shape == (17, 32, 32, 3)
    for own, expected in zip((latent, frames), one_chunk(direct, 17, num_steps=2), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("size", ["1.3B", "14B"])
def test_a_small_skyreels_of_diffusers_loads_and_makes_a_chunk(tmp_path, size):
    transformer, vae, text = small_skyreels(size)
    checkpoint = write_skyreels(tmp_path / "skyreels", transformer, vae, text)
    inventory = verify(checkpoint)
    assert inventory.all_problems() == []
    assert inventory.name == "SkyReels-V2 of its own size, diffusers"
    assert "transformer/diffusion_pytorch_model-00003-of-00003.safetensors" in loaded_files(checkpoint)
    model = SkyReels.from_pretrained(checkpoint)
    assert model.network.config.inject_sample_info == (size == "1.3B")
    assert_same(model.text_encoder.encoder, text.state_dict(), torch.float32)
    assert_makes_what_was_written(model, size)


@pytest.mark.parametrize(("size", "num_shards"), [("1.3B", 1), ("14B", 3)])
def test_a_small_skyreels_of_the_original_names_loads_converted_and_as_it_is(tmp_path, size, num_shards):
    """By itself it is verified, and generates nothing; beside a VAE and an encoder it does, converted or not."""
    transformer, vae, text = small_skyreels(size)
    set_dtypes(transformer, torch.bfloat16)
    original = write_original_skyreels(tmp_path / "original", transformer, num_shards)
    inventory = verify(original)
    assert inventory.all_problems() == []
    assert inventory.name == "SkyReels-V2 of its own size, original names"
    assert len(inventory.parts[0].tensors) == len(transformer.state_dict())
    command = "python -m flowcache.models.skyreels.checkpoint"
    assert f"to generate, convert it with `{command}" in inventory.notes[0]
    with pytest.raises(CheckpointError, match=f"laid out like the original release; convert .*{command}"):
        SkyReels.from_pretrained(original)

    convert(original, tmp_path / "converted")
    shutil.copytree(original, tmp_path / "as_is" / "transformer")
    for checkpoint, names in ((tmp_path / "converted", "diffusers"), (tmp_path / "as_is", "original names")):
        write_rest(checkpoint, vae, text)
        inventory = verify(checkpoint)
        assert inventory.all_problems() == []
        assert inventory.name == f"SkyReels-V2 of its own size, {names}"
        assert_makes_what_was_written(SkyReels.from_pretrained(checkpoint), size)
