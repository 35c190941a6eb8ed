"""Loading SkyReels-V2: diffusers' layout and the original names, and one clear message for whatever is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowcache.models.checkpoint import CheckpointError
from flowcache.models.skyreels import SkyReels
from flowcache.models.skyreels.checkpoint import convert, load_transformer, main
from flowcache.models.wan.modules import load_vae
from tests.models.skyreels_goldens import manifest, tensors, transformer
from tests.models.skyreels_pipeline import write_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("skyreels"))


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def original(tmp_path) -> Path:
    """The transformer as the original release has it."""
    directory = tmp_path / "original"
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps({"model_type": "t2v", **manifest("forward")["config"]}), encoding="utf-8"
    )
    save_file(tensors("weights_upstream"), directory / "model.safetensors")
    return directory


def assert_loaded(loaded: torch.nn.Module) -> None:
    expected = transformer().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[key], expected[key]) for key in expected)
    assert torch.equal(loaded.rope.freqs_cos, transformer().rope.freqs_cos)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


def split(path: Path, names: dict[str, slice]) -> dict[str, str]:
    """Replace a weights file by shards; returns where each tensor went."""
    whole = load_file(path)
    path.unlink()
    for name, part in names.items():
        save_file({key: whole[key] for key in sorted(whole)[part]}, path.parent / name)
    return {key: name for name, part in names.items() for key in sorted(whole)[part]}


def test_whole_and_sharded_transformers_load_alike(copy):
    directory = copy / "transformer"
    assert_loaded(load_transformer(directory))
    weight_map = split(directory / WEIGHTS, {"a.safetensors": slice(0, None, 2), "b.safetensors": slice(1, None, 2)})
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert_loaded(load_transformer(directory))
    (directory / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(b\.safetensors\); finish the download"):
        load_transformer(directory)


def test_the_original_names_load_whole_and_in_shards_without_an_index(original):
    assert_loaded(load_transformer(original))
    shards = {f"model-0000{i + 1}-of-00003.safetensors": slice(i, None, 3) for i in range(3)}
    split(original / "model.safetensors", shards)
    assert_loaded(load_transformer(original))
    (original / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds 2 of 3 shards; finish the download"):
        load_transformer(original)


def test_a_converted_checkpoint_is_that_of_diffusers(original, tmp_path):
    convert(original, tmp_path / "converted")
    assert_loaded(load_transformer(tmp_path / "converted" / "transformer"))
    assert_loaded(type(transformer()).from_pretrained(tmp_path / "converted" / "transformer").requires_grad_(False))
    with pytest.raises(CheckpointError, match="exists already; remove it or choose another destination"):
        convert(original, tmp_path / "converted")


def test_the_conversions_exit_codes(original, tmp_path, capsys):
    assert main([str(original), str(tmp_path / "converted")]) == 0
    assert_loaded(load_transformer(tmp_path / "converted" / "transformer"))
    capsys.readouterr()
    for arguments, message in (
        ([str(original), str(tmp_path / "converted")], "convert: .* exists already"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "other")], "convert: no configuration at .*nowhere"),
        ([str(original)], "usage: python -m flowcache.models.skyreels.checkpoint"),
    ):
        assert main(arguments) == 2
        assert re.match(message, said := capsys.readouterr().err)
        assert said.count("\n") == 1


def test_an_interrupted_conversion_leaves_nothing_that_reads_as_whole(original, tmp_path, monkeypatch):
    def killed(self, directory):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(transformer()), "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(original, tmp_path / "converted")
    assert not (tmp_path / "converted" / "transformer").exists()
    convert(original, tmp_path / "converted")
    assert_loaded(load_transformer(tmp_path / "converted" / "transformer"))


def test_matrices_take_the_type_asked_for_and_sensitive_parts_stay_float32(copy):
    loaded = load_transformer(copy / "transformer", dtype=torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == loaded.patch_embedding.weight.dtype == torch.bfloat16
    kept = (loaded.scale_shift_table, loaded.blocks[0].norm2.weight, loaded.rope.freqs_cos)
    kept += (loaded.condition_embedder.time_embedder.linear_1.weight,)
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_missing_unexpected_and_wrong_shapes_are_named(copy):
    path = copy / "transformer" / WEIGHTS
    weights = load_file(path)
    del weights["proj_out.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["patch_embedding.weight"] = torch.zeros(3, 3)
    save_file(weights, path)
    with pytest.raises(CheckpointError) as error:
        SkyReels.from_pretrained(copy)
    message = str(error.value)
    assert "1 missing keys (proj_out.bias)" in message
    assert "1 unexpected keys (extra.weight)" in message
    assert "first patch_embedding.weight: expected [48, 16, 1, 2, 2], found [3, 3]" in message
    assert "\n" not in message


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_truncated_weights_are_named(copy, part):
    path = next((copy / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"download (it|them) again") as error:
        SkyReels.from_pretrained(copy)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("transformer", "no weights in .*transformer"),
        ("transformer/config.json", "no configuration at .*config.json; give the directory of a downloaded checkpoint"),
        (f"vae/{WEIGHTS}", "no weights in .*vae"),
        ("vae/config.json", "no configuration at"),
        ("text_encoder/model.safetensors", "no weights in .*text_encoder"),
        ("text_encoder/config.json", "are not a UMT5 encoder and its tokenizer"),
        ("tokenizer", "are not a UMT5 encoder and its tokenizer"),
    ],
)
def test_missing_parts_are_named(copy, missing, message):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=message) as error:
        SkyReels.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_wrong_places_and_configurations_are_named(copy, original):
    with pytest.raises(CheckpointError, match="no checkpoint directory at"):
        SkyReels.from_pretrained(copy / "nowhere")
    with pytest.raises(CheckpointError, match="laid out like the original release; convert its transformer with"):
        SkyReels.from_pretrained(original)
    (copy / "transformer" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load_transformer(copy / "transformer")
    (original / "config.json").write_text(json.dumps({"num_heads": 3}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is not of a SkyReels-V2 transformer \('dim'\)"):
        load_transformer(original)
    (copy / "sampling.json").write_text(json.dumps({"num_step": 3}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"does not hold sampling settings .*did you mean num_steps"):
        SkyReels.from_pretrained(copy)


def test_the_vae_loads_in_float32(copy):
    vae = load_vae(copy / "vae")
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    shutil.copy(copy / "transformer" / WEIGHTS, copy / "vae" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"the weights in .* do not fit the configuration"):
        load_vae(copy / "vae")
