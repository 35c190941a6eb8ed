"""Loading: official layout and names, and one clear message for whatever is missing or wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.checkpoint import CheckpointError, load_weights
from flowcache.models.magi import Magi
from flowcache.models.magi.text import load_special_tokens
from tests.methods import chunkwise

EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
WEIGHTS = "inference_weight.distill"
PROMPT = "a red circle moving right on a dark background"
METHOD = chunkwise(threshold=0.015, warmup_steps=5)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED, tmp_path / "magi")


@pytest.fixture(scope="module")
def model():
    return Magi.from_pretrained(EMBEDDED)


def test_sharded_weights_equal_whole_ones(copy, model):
    whole = load_file(copy / WEIGHTS / "model.safetensors")
    names = sorted(whole)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: whole[key] for key in keys}, copy / WEIGHTS / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (copy / WEIGHTS / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (copy / WEIGHTS / "model.safetensors").unlink()
    loaded = Magi.from_pretrained(copy).dit.state_dict()
    expected = model.dit.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)

    (copy / WEIGHTS / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(model-2\.safetensors\); finish the download"):
        Magi.from_pretrained(copy)


def test_missing_unexpected_and_wrong_shapes_are_named(copy):
    path = copy / WEIGHTS / "model.safetensors"
    weights = load_file(path)
    del weights["rope.bands"]
    weights["extra.weight"] = torch.zeros(1)
    weights["x_embedder.weight"] = torch.zeros(3, 3)
    save_file(weights, path)
    with pytest.raises(CheckpointError) as error:
        Magi.from_pretrained(copy)
    message = str(error.value)
    assert "1 missing keys (rope.bands)" in message
    assert "1 unexpected keys (extra.weight)" in message
    assert "first x_embedder.weight: expected [192, 16, 1, 2, 2], found [3, 3]" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no MAGI-1 configuration"),
        (f"{WEIGHTS}/model.safetensors", "no weights in"),
        ("vae/config.json", "no VAE configuration"),
        ("vae/diffusion_pytorch_model.safetensors", "no weights in"),
        ("t5/config.json", "no T5 encoder"),
        ("special_tokens.safetensors", "no special tokens"),
    ],
)
def test_every_missing_file_is_named(copy, missing, message):
    (copy / missing).unlink()
    with pytest.raises((CheckpointError, FileNotFoundError), match=message):
        Magi.from_pretrained(copy)


def test_a_truncated_file_is_called_damaged(copy):
    path = copy / WEIGHTS / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"damaged or cut short .*download it again"):
        Magi.from_pretrained(copy)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        Magi.from_pretrained(tmp_path / "nothing")


def test_official_special_tokens_archive(tmp_path):
    import numpy as np

    other = np.arange(17 * 4, dtype=np.float32).reshape(17, 4)
    np.savez(tmp_path / "special_tokens.npz", caption_token=other[:1], logo_token=other[1:2], other_tokens=other)
    tokens = load_special_tokens(tmp_path / "special_tokens.npz")
    assert torch.equal(tokens["HQ_TOKEN"], torch.tensor(other[1:2]))
    assert torch.equal(tokens["DURATION_TOKEN_1"], torch.tensor(other[7:8]))
    assert torch.equal(tokens["DURATION_TOKEN_8"], torch.tensor(other[14:15]))
    assert torch.equal(tokens["TWO_D_ANIME_TOKEN"], torch.tensor(other[16:17]))


def test_parts_kept_in_float32_stay_so_whatever_the_file_holds(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["model_config"]["params_dtype"] = "torch.bfloat16"
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dit = Magi.from_pretrained(copy).dit
    layer = dit.videodit_blocks.layers[0]
    assert layer.self_attention.linear_qkv.q.weight.dtype == torch.bfloat16
    assert layer.self_attention.q_layernorm_xattn.weight.dtype == torch.bfloat16
    for module in (dit.x_embedder, dit.final_linear.linear, layer.self_attention.q_layernorm, layer.mlp_post_norm):
        assert module.weight.dtype == torch.float32


def test_load_weights_refuses_before_it_changes_anything(tmp_path):
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing keys \(bias\)"):
        load_weights(module, tmp_path, "cpu")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "try num_frames=24"),
        ({"num_frames": 60}, "does not fill whole chunks of 24"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"height": 50}, "multiples of 16"),
        ({"num_steps": 10}, "choose a multiple of 4"),
        ({"cfg_number": 2}, r"choose 1 \(distilled\) or 3"),
        ({"num_frames": 48.5}, "num_frames=48.5 does not fill whole chunks of 24 frames; try num_frames=48"),
        ({"image": torch.zeros(8, 8, 3, dtype=torch.uint8)}, r"image must be uint8 \[64, 64, 3\]"),
        (
            {"image": torch.zeros(64, 64, 3, dtype=torch.uint8), "prefix_video": torch.zeros(8, 64, 64, 3)},
            "not both",
        ),
    ],
)
def test_impossible_requests_get_one_message(model, options, message):
    request = {"prompt": PROMPT, "num_frames": 48, **options}
    with pytest.raises(ValueError, match=message):
        model.generation(request.pop("prompt"), request.pop("num_frames"), METHOD, 1, **request)


@pytest.mark.parametrize("cfg_number", [1, 3])
@pytest.mark.parametrize("given", ["text", "image", "video"])
def test_text_image_and_continuation_run_with_both_guidances(model, cfg_number, given):
    options = {"num_steps": 8, "cfg_number": cfg_number, "height": 32, "width": 32}
    num_frames = 48
    if given == "image":
        options["image"] = torch.full((32, 32, 3), 90, dtype=torch.uint8)
    elif given == "video":
        options["prefix_video"] = torch.full((32, 32, 32, 3), 90, dtype=torch.uint8)
        num_frames = 40  # 32 given and 40 new frames are three chunks
    chunks = list(generate(model, PROMPT, num_frames, METHOD, 5, **options))
    assert [len(chunk) for chunk in chunks] == ([16, 24] if given == "video" else [24, 24])
    assert all(chunk.dtype == torch.uint8 and chunk.shape[1:] == (32, 32, 3) for chunk in chunks)
    again = list(generate(model, PROMPT, num_frames, METHOD, 5, **options))
    assert all(torch.equal(a, b) for a, b in zip(chunks, again, strict=True))
    if given == "image":  # the image's own frames come back as the autoencoder renders them
        assert (chunks[0][0].int() - 90).abs().float().mean() < 12
