"""Loading causal Wan: published files, diffusers' folders, the original Wan 2.1; one message for whatever is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file

from flowcache.checkpoints import loaded_files, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan.checkpoint import load_transformer, locate
from flowcache.models.wan.config import NETWORKS
from flowcache.models.wan.files import release_of
from flowcache.models.wan.modules import load_vae
from flowcache.models.wan.names import transformer_name, umt5_name, vae_name
from flowcache.models.wan.text import TextEncoder
from flowcache.models.wan.vae import WanVae
from tests.models.headers import write_shards
from tests.models.wan_files import (
    UMT5_FILE,
    averaged,
    original_config,
    original_umt5,
    text_encoder,
    transformer,
    vae,
    write_base,
    write_diffusers,
    write_original,
    write_published,
)
from tests.models.wan_goldens import manifest, tensors

PROMPT = "a red circle moves left"
NAMES = {"transformer": transformer_name, "vae": vae_name}


def assert_loaded(loaded: torch.nn.Module, change: float = 0.0) -> None:
    expected = transformer().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[key], expected[key] + change) for key in expected)
    assert torch.equal(loaded.rope.freqs_cos, transformer().rope.freqs_cos)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


# Names.


@pytest.mark.parametrize("part", NAMES)
def test_the_rules_are_the_recorded_table_of_names(part):
    table = manifest("mapping")[part]
    assert {name: NAMES[part](name) for name in table} == table
    published = {"transformer": "weights", "vae": "vae_weights"}[part]
    assert {name.removeprefix("model.") for name in tensors(published)} == table.keys()


def test_the_rules_name_every_tensor_of_the_real_sizes():
    """Block by block as in the table of the small ones, and no name comes out that the networks lack."""
    with torch.device("meta"):
        real, real_vae = WanTransformer3DModel(**NETWORKS["1.3B"]), AutoencoderKLWan()
    originals = [name for name in manifest("mapping")["transformer"] if not name.startswith(("blocks.1.", "blocks.2."))]
    blocks = [name.replace("blocks.0.", f"blocks.{i}.") for name in originals for i in range(30)]
    assert {transformer_name(name) for name in blocks} == real.state_dict().keys()
    assert {vae_name(name) for name in manifest("mapping")["vae"]} == real_vae.state_dict().keys()
    assert {umt5_name(name) for name in original_umt5(text_encoder())} == {*text_encoder().state_dict()} - {
        "encoder.embed_tokens.weight"
    }


# Published files.


@pytest.mark.parametrize(
    ("file", "release", "published"),
    [
        ("checkpoints/self_forcing_dmd.pt", "Self-Forcing", "generator_ema"),
        ("checkpoints/rolling_forcing_dmd.pt", "Rolling Forcing", "generator_ema"),
        ("longlive_models/models/longlive_base.pt", "LongLive", "generator"),
        ("checkpoints/chunkwise/causal_forcing.pt", "Causal-Forcing, chunk by chunk", "generator"),
        ("checkpoints/framewise/causal_forcing.pt", "Causal-Forcing, frame by frame", "generator_ema"),
        ("checkpoints/causal-forcing++/framewise-2step.pt", "Causal-Forcing, frame by frame", "generator_ema"),
        ("mine/model.pt", None, "generator_ema"),
    ],
)
def test_the_weights_are_those_of_the_published_command_or_the_ones_asked_for(tmp_path, file, release, published):
    sections = {"generator": tensors("weights"), "generator_ema": averaged(1.0), "critic": {"a": torch.zeros(1)}}
    files = locate(write_published(tmp_path / file, **sections))
    found = release_of(files.transformer)
    assert (found and found.name) == release
    assert_loaded(load_transformer(files), 1.0 if published == "generator_ema" else 0.0)
    assert_loaded(load_transformer(files, weights="generator"))
    assert_loaded(load_transformer(files, weights="generator_ema"), 1.0)


def test_weights_that_a_file_lacks_are_named_with_those_that_it_holds(tmp_path):
    files = locate(write_published(tmp_path / "self_forcing_dmd.pt", generator=averaged(), critic={}))
    message = r"no weights 'generator_ema': it holds generator, critic; choose weights=generator$"
    for weights in (None, "generator_ema"):
        with pytest.raises(CheckpointError, match=message):
            load_transformer(files, weights=weights)
    assert_loaded(load_transformer(files, weights="generator"))
    assert_loaded(load_transformer(locate(write_published(tmp_path / "mine" / "m.pt", generator=averaged()))))
    other = locate(write_published(tmp_path / "other" / "m.pt", critic=averaged()))
    with pytest.raises(CheckpointError, match=r"no weights 'generator': it holds critic; download it again"):
        load_transformer(other)


def test_tensors_alone_load_pickled_or_not_with_the_prefix_or_without(tmp_path):
    write_published(tmp_path / "model.pt", **tensors("weights"))
    assert_loaded(load_transformer(locate(tmp_path)))
    with pytest.raises(CheckpointError, match="it holds one set without a name; leave weights out"):
        load_transformer(locate(tmp_path), weights="generator")
    (tmp_path / "model.pt").unlink()
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors("weights").items()}
    for number, weights in enumerate((tensors("weights"), bare)):
        file = tmp_path / f"{number}.safetensors"
        save_file(weights, file)
        assert_loaded(load_transformer(locate(file)))
    with pytest.raises(
        CheckpointError, match=r"0.safetensors holds one set of weights, and weights='generator' is not"
    ):
        load_transformer(locate(tmp_path / "0.safetensors"), weights="generator")
    save_file({name: tensor.clone() for name, tensor in (bare | tensors("weights")).items()}, file)
    with pytest.raises(CheckpointError, match=r"holds tensors twice, with and without 'model.'"):
        load_transformer(locate(file))


def test_files_of_before_torch_1_6_load_too(tmp_path):
    path = write_published(tmp_path / "model.pt")
    torch.save({"generator": tensors("weights")}, path, _use_new_zipfile_serialization=False)
    assert_loaded(load_transformer(locate(path)))


def test_what_is_loaded_does_not_follow_the_file(tmp_path):
    """A mapped tensor would: it would change or end the process with the file."""
    path = write_published(tmp_path / "model.pt", generator=tensors("weights"))
    loaded = load_transformer(locate(path))
    path.write_bytes(b"")
    assert_loaded(loaded)


def test_matrices_take_the_type_asked_for_and_sensitive_parts_stay_float32(tmp_path):
    loaded = load_transformer(
        locate(write_published(tmp_path / "model.pt", generator=tensors("weights"))), dtype=torch.bfloat16
    )
    assert loaded.blocks[0].attn1.to_q.weight.dtype == loaded.patch_embedding.weight.dtype == torch.bfloat16
    kept = (loaded.scale_shift_table, loaded.blocks[0].norm2.weight, loaded.rope.freqs_cos)
    kept += (loaded.condition_embedder.time_embedder.linear_1.weight,)
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_a_folder_of_diffusers_loads_whole_and_by_another_class_name(tmp_path):
    directory = write_diffusers(tmp_path / "wan")
    assert_loaded(load_transformer(locate(directory)))
    config = directory / "transformer" / "config.json"
    document = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(document | {"_class_name": "CausalWanTransformer3DModel"}), encoding="utf-8")
    assert_loaded(load_transformer(locate(directory)))
    config.write_text(json.dumps(document | {"_class_name": "Another"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is not of a Wan 2.1 transformer \(it is of Another\)"):
        load_transformer(locate(directory))
    config.write_text(json.dumps(document | {"image_dim": 8, "added_kv_proj_dim": 8}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"image embeddings .*; use a text-to-video checkpoint"):
        load_transformer(locate(directory))
    with pytest.raises(CheckpointError, match="holds one set of weights"):
        load_transformer(locate(directory), weights="generator")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_an_original_folder_of_wan_loads_and_verifies(tmp_path, num_shards):
    """config.json and safetensors beside VAE and text encoder, as Wan 2.1 itself is published."""
    directory = write_base(tmp_path / "Wan2.1-T2V-1.3B")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors("weights").items()}
    write_shards(directory, "diffusion_pytorch_model", bare, num_shards)
    (directory / "config.json").write_text(json.dumps(original_config()), encoding="utf-8")
    assert_loaded(load_transformer(locate(directory)))
    inventory = verify(directory)
    assert inventory.all_problems() == []
    assert inventory.name == "Wan of its own size"
    assert "transformer/config.json" in loaded_files(directory)
    if num_shards > 1:
        next(directory.glob("*-00002-of-00003.safetensors")).unlink()
        assert "lacks 1 of 3 shards" in verify(directory).all_problems()[0]


# The parts of Wan 2.1.


@pytest.fixture
def original(tmp_path) -> Path:
    return write_original(tmp_path)


def test_the_original_vae_is_that_of_diffusers_and_decodes_as_recorded(original):
    loaded = load_vae(locate(original).vae)
    expected = vae().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[key], expected[key]) for key in expected)
    recorded = tensors("vae")
    frames = WanVae(loaded).decoder()(recorded["in.latents"].transpose(1, 2)).clamp(-1, 1)
    torch.testing.assert_close(frames.transpose(1, 2), recorded["decode"], rtol=0, atol=2e-5)


def test_the_original_text_encoder_is_that_of_transformers(original, tmp_path):
    files = locate(original)
    assert files.text_encoder.name == UMT5_FILE
    own = TextEncoder.from_pretrained(files.text_encoder, files.tokenizer, channels=24)
    expected = text_encoder().state_dict()
    assert own.encoder.state_dict().keys() == expected.keys()
    assert all(torch.equal(own.encoder.state_dict()[key], expected[key]) for key in expected)
    folder = write_diffusers(tmp_path / "diffusers")
    theirs = TextEncoder.from_pretrained(folder / "text_encoder", folder / "tokenizer")
    assert torch.equal(own(PROMPT), theirs(PROMPT))
    assert own(PROMPT).abs().max() > 0
    half = TextEncoder.from_pretrained(files.text_encoder, files.tokenizer, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.encoder.parameters()} == {torch.bfloat16}
    with pytest.raises(CheckpointError, match="gives captions 24 channels, and the transformer takes 4096"):
        TextEncoder.from_pretrained(files.text_encoder, files.tokenizer, channels=4096)
    broken = original_umt5(text_encoder())
    del broken["blocks.1.ffn.fc2.weight"]
    torch.save(broken, files.text_encoder)
    with pytest.raises(CheckpointError, match=r"1 missing keys \(encoder.block.1.layer.1.DenseReluDense.wo.weight\)"):
        TextEncoder.from_pretrained(files.text_encoder, files.tokenizer)


def test_parts_are_found_around_a_checkpoint_and_where_they_are_told_to_be(original, tmp_path):
    base = tmp_path / "wan_models" / "Wan2.1-T2V-1.3B"
    for path in (original, original.parent):
        files = locate(path)
        assert (files.transformer, files.vae) == (original, base / "Wan2.1_VAE.pth")
        assert (files.text_encoder, files.tokenizer) == (base / UMT5_FILE, base / "google" / "umt5-xxl")
    own = write_diffusers(tmp_path / "another")
    assert locate(original, base=own).vae == own / "vae"
    shutil.copytree(own / "vae", original.parent / "vae")
    assert locate(original).vae == original.parent / "vae"  # its own come first
    with pytest.raises(CheckpointError, match=r"no directory at .*nowhere; give the path of a downloaded Wan 2.1"):
        locate(original, base=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no adapter at .*nowhere"):
        locate(original, lora=tmp_path / "nowhere")
    for place in (tmp_path / "nowhere", original.parent / "config.json"):
        with pytest.raises(CheckpointError, match="no checkpoint directory at"):
            locate(place)
    shutil.copy(original, original.parent / "ode_init.pt")
    with pytest.raises(
        CheckpointError, match=r"holds 2 checkpoints \(ode_init.pt, self_forcing_dmd.pt\); give the path"
    ):
        locate(original.parent)
    with pytest.raises(CheckpointError, match=r"no transformer in .*: expected a published file"):
        locate(tmp_path / "wan_models")
