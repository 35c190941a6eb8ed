"""Loading causal Wan: published files, diffusers' folders, the original Wan 2.1; one message for whatever is wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from flowcache.checkpoints import loaded_files, main, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan.checkpoint import load_transformer, locate
from flowcache.models.wan.config import NETWORKS
from flowcache.models.wan.files import release_of
from flowcache.models.wan.modules import load_vae
from flowcache.models.wan.names import transformer_name, umt5_name, vae_name
from flowcache.models.wan.text import TextEncoder
from flowcache.models.wan.vae import WanVae
from tests.models.headers import write_shards
from tests.models.skyreels_pipeline import write_tokenizer
from tests.models.wan_files import (
    UMT5_FILE,
    averaged,
    manifest,
    original_config,
    original_umt5,
    tensors,
    text_encoder,
    transformer,
    vae,
    write_base,
    write_diffusers,
    write_published,
    write_sparse_pickle,
)

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
    """As Self-Forcing's README tells to download: checkpoints beside wan_models."""
    write_base(tmp_path / "wan_models" / "Wan2.1-T2V-1.3B")
    return write_published(tmp_path / "checkpoints" / "self_forcing_dmd.pt", generator_ema=averaged())


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


# verify.


def test_a_published_checkpoint_verifies_and_its_files_are_told(original, capsys):
    for path in (original, original.parent):
        inventory = verify(path)
        assert inventory.all_problems() == []
        assert inventory.name == "Self-Forcing of its own size"
        assert [part.name for part in inventory.parts] == ["transformer", "vae", "text encoder"]
        assert len(inventory.parts[0].tensors) == len(transformer().state_dict())
    assert main(["verify", str(original)]) == 0
    assert "   3 x blocks.*.attn1.to_q.weight [60, 60] float32" in capsys.readouterr().out
    assert loaded_files(original).keys() == {
        "transformer/self_forcing_dmd.pt",
        "transformer/config.json",
        "vae/Wan2.1_VAE.pth",
        f"text_encoder/{UMT5_FILE}",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_a_folder_of_diffusers_verifies(tmp_path):
    directory = write_diffusers(tmp_path / "wan")
    inventory = verify(directory)
    assert inventory.all_problems() == []
    assert inventory.name == "Wan of its own size"
    assert "transformer/diffusion_pytorch_model.safetensors" in loaded_files(directory)
    shutil.rmtree(directory / "tokenizer")
    (problem,) = verify(directory).all_problems()
    assert problem.startswith("no tokenizer in")


def test_the_real_size_verifies_from_headers_alone(tmp_path):
    """LongLive's layout at 1.3B: base, adapter of rank 256, and the original Wan 2.1 in wan_models."""
    with torch.device("meta"):
        real, real_vae = WanTransformer3DModel(**NETWORKS["1.3B"]), AutoencoderKLWan()
        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
        text = UMT5EncoderModel(UMT5Config(**sizes, vocab_size=256384, feed_forward_proj="gated-gelu"))
    own = {name: tuple(tensor.shape) for name, tensor in real.state_dict().items()}
    small = [name for name in manifest("mapping")["transformer"] if not name.startswith(("blocks.1.", "blocks.2."))]
    originals = {name.replace("blocks.0.", f"blocks.{i}.") for name in small for i in range(30)}
    shapes = {f"model.{name}": own[transformer_name(name)] for name in originals}
    assert shapes["model.blocks.29.ffn.0.weight"] == (8960, 1536)
    models = tmp_path / "longlive_models" / "models"
    base = write_sparse_pickle(models / "longlive_base.pt", {"generator": shapes})
    assert base.stat().st_size > 5.6e9
    adapter = {}
    for name, shape in shapes.items():
        if name.startswith("model.blocks.") and name.endswith(".weight") and len(shape) == 2:
            layer = name.removeprefix("model.").removesuffix(".weight")
            adapter[f"base_model.model.{layer}.lora_A.weight"] = (256, shape[1])
            adapter[f"base_model.model.{layer}.lora_B.weight"] = (shape[0], 256)
    assert len(adapter) == 600
    write_sparse_pickle(models / "lora.pt", {"generator_lora": adapter})
    folder = tmp_path / "wan_models" / "Wan2.1-T2V-1.3B"
    weights = real_vae.state_dict()
    vae_shapes = {name: tuple(weights[vae_name(name)].shape) for name in manifest("mapping")["vae"]}
    write_sparse_pickle(folder / "Wan2.1_VAE.pth", vae_shapes)
    write_sparse_pickle(folder / UMT5_FILE, {name: tuple(t.shape) for name, t in original_umt5(text).items()})
    (folder / "google").mkdir()
    write_tokenizer(folder / "google")
    (folder / "google" / "tokenizer").rename(folder / "google" / "umt5-xxl")
    inventory = verify(models)
    assert inventory.all_problems() == []
    assert inventory.name == "LongLive 1.3B"
    network, lora, autoencoder, encoder = inventory.parts
    assert (len(network.tensors), network.num_parameters) == (825, 1_418_996_800)
    assert lora.num_parameters == sum(a * b for a, b in adapter.values())
    assert autoencoder.num_parameters / 1e6 == pytest.approx(127, rel=0.01)
    assert encoder.num_parameters / 1e9 == pytest.approx(5.68, rel=0.01)


# Damage.


class Code:
    def __reduce__(self):
        return print, ("code of the file was run",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8")


def code(path: Path) -> None:
    torch.save({"generator_ema": averaged(), "more": Code()}, path)


def bare_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"generator_ema": Code()}, protocol=2))


def strange_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"generator_ema": Code()}, protocol=4))


def no_names(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def numbers(path: Path) -> None:
    torch.save({"generator_ema": averaged() | {"step": 3}}, path)


def prefix(path: Path) -> None:
    torch.save(
        {"generator_ema": {name.replace("model.", "module."): t for name, t in tensors("weights").items()}}, path
    )


def missing(path: Path) -> None:
    torch.save({"generator_ema": {n: t for n, t in averaged().items() if n != "model.head.head.bias"}}, path)


def unexpected(path: Path) -> None:
    torch.save({"generator_ema": averaged() | {"model.img_emb.proj.0.weight": torch.zeros(2)}}, path)


def reshaped(path: Path) -> None:
    torch.save({"generator_ema": averaged() | {"model.head.head.bias": torch.zeros(2)}}, path)


def eight_bits(path: Path) -> None:
    weights = averaged()
    weights["model.head.head.weight"] = weights["model.head.head.weight"].to(torch.float8_e4m3fn)
    torch.save({"generator_ema": weights}, path)


def no_config(path: Path) -> None:
    (path.parent / "config.json").unlink()


def half_config(path: Path) -> None:
    document = original_config()
    del document["num_layers"]
    (path.parent / "config.json").write_text(json.dumps(document), encoding="utf-8")


def other_config(path: Path) -> None:
    (path.parent / "config.json").write_text(json.dumps(original_config() | {"num_layers": 4}), encoding="utf-8")


def base_of(path: Path) -> Path:
    return path.parents[1] / "wan_models" / "Wan2.1-T2V-1.3B"


def cut_vae(path: Path) -> None:
    cut(base_of(path) / "Wan2.1_VAE.pth")


def no_vae(path: Path) -> None:
    (base_of(path) / "Wan2.1_VAE.pth").unlink()


def other_vae(path: Path) -> None:
    shutil.copy(base_of(path) / UMT5_FILE, base_of(path) / "Wan2.1_VAE.pth")


def short_vae(path: Path) -> None:
    weights = {name: tensor for name, tensor in tensors("vae_weights").items() if name != "conv2.bias"}
    torch.save(weights, base_of(path) / "Wan2.1_VAE.pth")


def cut_text(path: Path) -> None:
    cut(base_of(path) / UMT5_FILE)


def other_text(path: Path) -> None:
    shutil.copy(base_of(path) / "Wan2.1_VAE.pth", base_of(path) / UMT5_FILE)


OF_THE_TRANSFORMER = {
    cut: r"self_forcing_dmd.pt is damaged or cut short \(.*; download it again",
    empty: r"self_forcing_dmd.pt is damaged or cut short",
    pointer: r"is a Git LFS pointer and not the weights",
    code: r"holds more than tensors \(print\), which could run code and is not opened",
    bare_code: r"holds more than tensors \(print\)",
    strange_code: r"is damaged or cut short \((?!Weights only)",
    no_names: r"holds a list and no named tensors",
    numbers: r"holds a int by the name of step",
    prefix: r"holds no patch_embedding.weight \(but module.blocks.0.*'model.' before them or nothing; give a published",
    missing: r"1 missing keys \(proj_out.bias\)",
    unexpected: r"1 unexpected keys \(img_emb.proj.0.weight\)",
    reshaped: r"1 wrong shapes \(first proj_out.bias: expected \[64\], found \[2\]\)",
    eight_bits: r"as float8_e4m3fn, which this library does not run; use the release in bfloat16",
    no_config: r"is of no released Wan 2.1 \(60 channels\): put the config.json that belongs to it beside it",
    half_config: r"config.json is not of a Wan 2.1 transformer \('num_layers'\)",
    other_config: r"missing keys \(blocks.3.attn1",
}
OF_THE_REST = {
    cut_vae: r"Wan2.1_VAE.pth is damaged or cut short",
    no_vae: r"no VAE at .*vae; download Wan2.1_VAE.pth",
    other_vae: r"Wan2.1_VAE.pth is not of a Wan 2.1 VAE",
    short_vae: r"1 missing keys \(post_quant_conv.bias\)",
    cut_text: rf"{UMT5_FILE} is damaged or cut short",
    other_text: rf"{UMT5_FILE} is not the UMT5 encoder of Wan 2.1",
}


def named(damage: object) -> str:
    return damage.__name__


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", [*OF_THE_TRANSFORMER, *OF_THE_REST], ids=named)
def test_every_damage_has_one_message_and_runs_nothing(original, damage, capsys):
    message = (OF_THE_TRANSFORMER | OF_THE_REST)[damage]
    damage(original)
    assert main(["verify", str(original)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("problem: ")
    assert printed.err.count("\n") == 1
    assert "code of the file" not in printed.out + printed.err
    assert re.search(message, printed.err)
    files = locate(original)
    loads = {
        "transformer": lambda: load_transformer(files),
        "text": lambda: TextEncoder.from_pretrained(files.text_encoder, files.tokenizer),
        "vae": lambda: load_vae(files.vae),
    }
    part = "transformer" if damage in OF_THE_TRANSFORMER else damage.__name__.split("_")[1]
    with pytest.raises(CheckpointError, match=message) as error:
        loads[part]()
    assert "\n" not in str(error.value)
    assert "code of the file" not in capsys.readouterr().out


def test_nothing_is_read_of_weights_that_do_not_fit(original, monkeypatch):
    missing(original)
    monkeypatch.setattr("flowcache.models.wan.checkpoint.fill", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(CheckpointError, match="missing keys"):
        load_transformer(locate(original))
