"""``python -m flowcache.checkpoints verify``: official layouts at their true sizes, and every kind of damage."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from experiments.job.paths import ROOT
from flowcache.checkpoints import loaded_files, main, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.magi import Magi
from flowcache.models.magi.checkpoint import locate
from flowcache.models.magi.config import NETWORKS as MAGI_NETWORKS
from flowcache.models.magi.network import MagiDit
from flowcache.models.magi.vae import MagiVae, VaeConfig
from flowcache.models.skyreels import SkyReels
from flowcache.models.skyreels.config import NETWORKS as SKYREELS_NETWORKS
from flowcache.models.wan.modules import set_dtypes
from tests.models.magi_goldens import tensors
from tests.models.releases import in_layers, write_magi, write_original_skyreels, write_skyreels
from tests.models.skyreels_pipeline import write_checkpoint

EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
SIZES = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}  # T5-v1.1-XXL and UMT5-XXL


# Layouts at their true sizes, of headers alone.


def write_magi_headers(download: Path, size: str, distill: bool) -> Path:
    with torch.device("meta"):
        dit, vae = MagiDit(replace(MAGI_NETWORKS[size], distill=distill)), MagiVae(VaeConfig())
        text = T5EncoderModel(T5Config(**SIZES, vocab_size=32128, feed_forward_proj="gated-gelu"))
    return write_magi(download, size, distill, dit, vae, text)


@pytest.mark.parametrize(
    ("size", "distill", "settings"),
    [
        ("4.5B", False, (3, 64, "720 x 720")),
        ("4.5B", True, (1, 64, "720 x 720")),
        ("24B", False, (3, 32, "720 x 1280")),
        ("24B", True, (1, 16, "720 x 1280")),
    ],
)
def test_magi_as_downloaded_is_recognised_without_a_configuration(tmp_path, capsys, size, distill, settings):
    release = write_magi_headers(tmp_path, size, distill)
    inventory = verify(release)
    assert inventory.all_problems() == []
    assert inventory.name == f"MAGI-1 {size}, {'distilled' if distill else 'base'}"
    assert tuple(inventory.settings.values())[:3] == settings
    assert inventory.settings["noise2clean_kvrange"] == [5, 4, 3, 2]
    transformer, vae, text = inventory.parts
    billions = {"4.5B": 4.5, "24B": 23.7}[size]
    assert transformer.num_parameters / 1e9 == pytest.approx(billions, rel=0.05)
    assert vae.num_parameters / 1e6 == pytest.approx(614, rel=0.01)
    assert text.num_parameters / 1e9 == pytest.approx(4.9, rel=0.01)  # its embeddings are there under two names
    with torch.device("meta"):
        expected = MagiDit(locate(release).config.dit)
    assert transformer.nbytes == sum(tensor.nbytes for tensor in expected.state_dict().values())
    assert main(["verify", str(release)]) == 0
    printed = capsys.readouterr().out
    layers = MAGI_NETWORKS[size].num_layers
    assert f"{layers:>4} x videodit_blocks.layers.*.self_attention.linear_qkv.q.weight" in printed
    assert printed.endswith("nothing is missing or wrong\n")


@pytest.mark.parametrize("gated", ["mlp", "glu"])
def test_magi_names_are_those_of_the_official_code(gated):
    official = tensors(f"dit_weights_{gated}")
    with torch.device("meta"):
        own = MagiDit(replace(MAGI_NETWORKS["4.5B"], gated_linear_unit=gated == "glu"))
    assert in_layers(own.state_dict()) == in_layers(official)
    with torch.device("meta"):
        vae = MagiVae(VaeConfig())
    assert in_layers(vae.state_dict()) == in_layers(tensors("vae_weights"))


@pytest.mark.parametrize(("size", "billions"), [("1.3B", 1.42), ("14B", 14.29)])
def test_skyreels_as_diffusers_lays_it_out(tmp_path, size, billions):
    with torch.device("meta"):
        transformer, vae = SkyReelsV2Transformer3DModel(**SKYREELS_NETWORKS[size]), AutoencoderKLWan()
        text = UMT5EncoderModel(UMT5Config(**SIZES, vocab_size=256384, feed_forward_proj="gated-gelu"))
    inventory = verify(write_skyreels(tmp_path, transformer, vae, text))
    assert inventory.all_problems() == []
    assert inventory.name == f"SkyReels-V2 {size}, diffusers"
    assert inventory.parts[0].num_parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert inventory.parts[1].num_parameters / 1e6 == pytest.approx(127, rel=0.01)
    assert inventory.settings["base_num_frames"] == 97


@pytest.mark.parametrize("size", ["1.3B", "14B"])
def test_skyreels_as_originally_released(tmp_path, size):
    with torch.device("meta"):
        transformer = SkyReelsV2Transformer3DModel(**SKYREELS_NETWORKS[size])
    set_dtypes(transformer, torch.bfloat16)
    write_original_skyreels(tmp_path, transformer, 3)
    inventory = verify(tmp_path)
    assert inventory.all_problems() == []
    assert inventory.name == f"SkyReels-V2 {size}, original names"
    assert len(inventory.parts[0].tensors) == len(transformer.state_dict())
    assert "Wan2.1_VAE.pth are pickles, which are not opened" in inventory.notes[0]


# Small ones of the same layout: they load, and every kind of damage has its message.


@pytest.fixture
def magi(tmp_path) -> Path:
    """The embedded MAGI-1 as an official download is laid out, its transformer in three shards."""
    release = tmp_path / "ckpt" / "magi" / "small"
    (release / "inference_weight.distill").mkdir(parents=True)
    for name in ("vae", "t5"):
        shutil.copytree(EMBEDDED / name, tmp_path / "ckpt" / (name if name == "vae" else "t5/t5-v1_1-xxl"))
    for name in ("config.json", "special_tokens.safetensors"):
        shutil.copy(EMBEDDED / name, release / name)
    whole, weight_map = load_file(EMBEDDED / "inference_weight.distill" / "model.safetensors"), {}
    for shard in range(3):
        part = {name: whole[name] for name in sorted(whole)[shard::3]}
        save_file(part, release / "inference_weight.distill" / f"model-0000{shard + 1}-of-00003.safetensors")
        weight_map |= dict.fromkeys(part, f"model-0000{shard + 1}-of-00003.safetensors")
    index = release / "inference_weight.distill" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return release


def shard(release: Path) -> Path:
    return release / "inference_weight.distill" / "model-00002-of-00003.safetensors"


def test_what_verifies_loads(magi):
    assert verify(magi).all_problems() == []
    assert loaded_files(magi)["inference_weight.distill/model-00002-of-00003.safetensors"] == shard(magi)
    loaded = Magi.from_pretrained(magi).dit.state_dict()
    expected = load_file(EMBEDDED / "inference_weight.distill" / "model.safetensors")
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_an_encoder_published_as_pickles_verifies_and_loads_through_the_restricted_unpickler(magi):
    text = magi.parents[1] / "t5" / "t5-v1_1-xxl"
    expected = Magi.from_pretrained(magi).text_encoder("a red circle")[0]
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    inventory = verify(magi)
    assert inventory.all_problems() == []
    assert inventory.parts[2].num_parameters > 0
    assert "t5/pytorch_model.bin" in loaded_files(magi)
    assert torch.equal(Magi.from_pretrained(magi).text_encoder("a red circle")[0], expected)


def remove_shard(release: Path) -> None:
    shard(release).unlink()


def cut_shard(release: Path) -> None:
    shard(release).write_bytes(shard(release).read_bytes()[:-100])


def reshape(release: Path) -> None:
    weights = load_file(shard(release))
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    save_file(weights | {name: weights[name][:-1].contiguous()}, shard(release))


def other_network(release: Path) -> None:
    document = json.loads((release / "config.json").read_text(encoding="utf-8"))
    document["model_config"]["num_layers"] += 1
    (release / "config.json").write_text(json.dumps(document), encoding="utf-8")


def pickle_all(release: Path) -> None:
    for path in shard(release).parent.iterdir():
        path.unlink()
    torch.save({"weight": torch.zeros(1)}, shard(release).parent / "model.pt")


def pickle_by_name(release: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, shard(release))


def pointer(release: Path) -> None:
    shard(release).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8")


def other_index(release: Path) -> None:
    index = shard(release).parent / "model.safetensors.index.json"
    document = json.loads(index.read_text(encoding="utf-8"))
    document["weight_map"]["videodit_blocks.nothing"] = shard(release).name
    index.write_text(json.dumps(document), encoding="utf-8")


def eight_bits(release: Path) -> None:
    weights = load_file(shard(release))
    name = next(iter(weights))
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, shard(release))


def packed(release: Path) -> None:
    shard(release).rename(f"{shard(release)}.zst")


def no_vae(release: Path) -> None:
    shutil.rmtree(release.parents[1] / "vae")


def cut_vae(release: Path) -> None:
    path = release.parents[1] / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_text(release: Path) -> None:
    path = release.parents[1] / "t5" / "t5-v1_1-xxl" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def bad_tokens(release: Path) -> None:
    (release / "special_tokens.safetensors").unlink()
    (release / "special_tokens.npz").write_bytes(b"PK but nothing more")


DAMAGE = {
    remove_shard: r"lacks 1 of 3 shards \(model-00002-of-00003.safetensors\); finish the download",
    packed: r"lacks 1 of 3 shards .*; unpack them with `zstd -d",
    cut_shard: r"model-00002-of-00003.safetensors is damaged or cut short .*download it again",
    reshape: r"1 wrong shapes \(first .*: expected \[.*\], found \[",
    other_network: r"missing keys \(videodit_blocks.layers.6.",
    pickle_all: r"holds pickled weights \(model.pt\), which can run code when they are opened",
    pickle_by_name: r"is a pickle by the name of safetensors",
    pointer: r"is a Git LFS pointer and not the weights",
    other_index: r"lacks 1 tensors that its index names \(videodit_blocks.nothing\)",
    eight_bits: r"as F8_E4M3, which this library does not run; use the release in bfloat16",
    no_vae: r"no VAE configuration at",
    cut_vae: r"vae.*is damaged or cut short",
    cut_text: r"t5-v1_1-xxl",
    bad_tokens: r"special_tokens.npz",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_every_damage_has_one_message_and_nothing_is_loaded(magi, damage, capsys, monkeypatch):
    damage(magi)
    (problem,) = verify(magi).all_problems()
    assert re.search(DAMAGE[damage], problem)
    assert "\n" not in problem
    assert main(["verify", str(magi)]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"problem: {problem}\n"
    assert "1 problem\n" in printed.out
    monkeypatch.setattr("flowcache.models.magi.model.load_weights", lambda *a: pytest.fail("weights were loaded"))
    with pytest.raises((CheckpointError, FileNotFoundError, ValueError)) as error:
        Magi.from_pretrained(magi)
    assert re.search(DAMAGE[damage], str(error.value))
    assert "\n" not in str(error.value)


def test_another_releases_weights_are_named(tmp_path):
    release = write_magi_headers(tmp_path, "4.5B", True)
    document = {"model_config": {}, "runtime_config": {}, "engine_config": {"distill": True}}
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    names += ("in_channels", "out_channels", "half_channel_vae", "x_rescale_factor", "gated_linear_unit")
    document["model_config"] = {name: getattr(MAGI_NETWORKS["24B"], name) for name in names}
    (release / "config.json").write_text(json.dumps(document), encoding="utf-8")
    (problem,) = verify(release).all_problems()
    assert "are those of MAGI-1 4.5B and" in problem
    assert "describes 24B; put the two that belong together there" in problem


@pytest.fixture
def skyreels(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "skyreels")


def test_a_small_skyreels_verifies_and_its_damage_is_named(skyreels):
    assert verify(skyreels).all_problems() == []
    SkyReels.from_pretrained(skyreels)
    config = json.loads((skyreels / "transformer" / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"num_layers": 9}, "does not fit its configuration: .* missing keys"),
        ({"_class_name": "WanTransformer3DModel"}, "is of WanTransformer3DModel and not of a SkyReels-V2 transformer"),
        ({"image_dim": 8}, "use a diffusion-forcing checkpoint"),
    ):
        (skyreels / "transformer" / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        problems = verify(skyreels).all_problems()
        assert len(problems) == 1
        assert re.search(message, problems[0])
    (skyreels / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.rmtree(skyreels / "tokenizer")
    assert "no tokenizer in" in verify(skyreels).all_problems()[0]


def test_directories_that_are_no_checkpoint(tmp_path, magi, capsys):
    for place in (tmp_path / "nowhere", magi / "config.json"):
        assert main(["verify", str(place)]) == 2
        assert capsys.readouterr().err.startswith(f"verify: no checkpoint directory at {place}; give the path")
    assert main(["verify", str(tmp_path / ("n" * 300))]) == 2  # a name that no file system takes
    assert "File name too long" in capsys.readouterr().err
    assert main(["verify", str(magi.parent)]) == 2
    assert "is no checkpoint of MAGI-1" in (error := capsys.readouterr().err)
    assert "; small in it look like some" in error
    assert main(["list"]) == 2
    assert "usage" in capsys.readouterr().err
