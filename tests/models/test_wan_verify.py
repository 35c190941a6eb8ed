"""`python -m flowcache.checkpoints verify` of causal Wan: published layouts, and one message for every damage."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from flowcache.checkpoints import loaded_files, main, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan.checkpoint import load_transformer, locate
from flowcache.models.wan.config import NETWORKS
from flowcache.models.wan.modules import load_vae
from flowcache.models.wan.names import transformer_name, vae_name
from flowcache.models.wan.text import TextEncoder
from tests.models.skyreels_pipeline import write_tokenizer
from tests.models.wan_files import (
    UMT5_FILE,
    averaged,
    original_config,
    original_umt5,
    transformer,
    write_diffusers,
    write_original,
    write_sparse_pickle,
)
from tests.models.wan_goldens import manifest, tensors


@pytest.fixture
def original(tmp_path) -> Path:
    return write_original(tmp_path)


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
