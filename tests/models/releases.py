"""Checkpoints in the releases' own layouts, names and settings: of headers alone at true size, or small and whole."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from transformers import T5Config, T5EncoderModel, UMT5EncoderModel

from flowcache.models.magi.config import NETWORKS as MAGI_NETWORKS
from flowcache.models.magi.network import MagiDit
from flowcache.models.magi.vae import MagiVae, VaeConfig
from flowcache.models.skyreels.config import NETWORKS as SKYREELS_NETWORKS
from flowcache.models.wan.modules import set_dtypes
from tests.models.headers import write_shards, write_tensors
from tests.models.skyreels_goldens import manifest as skyreels_manifest
from tests.models.skyreels_pipeline import tiny_text_encoder, tiny_vae, write_tokenizer

PROMPT = "a red circle moves left"

# The figures of example/4.5B and example/24B, *_config.json (SandAI-org/MAGI-1): those of the distilled 4.5B, and how
# the other releases differ.
_DOCUMENT: dict[str, dict[str, Any]] = {
    "model_config": {
        "model_name": "videodit_ardf",
        "num_layers": 34,
        "hidden_size": 3072,
        "ffn_hidden_size": 12288,
        "num_attention_heads": 24,
        "num_query_groups": 8,
        "kv_channels": 128,
        "layernorm_epsilon": 1e-6,
        "apply_layernorm_1p": True,
        "x_rescale_factor": 1,
        "half_channel_vae": False,
        "params_dtype": "torch.bfloat16",
        "patch_size": 2,
        "t_patch_size": 1,
        "in_channels": 16,
        "out_channels": 16,
        "cond_hidden_ratio": 0.25,
        "caption_channels": 4096,
        "caption_max_length": 800,
        "xattn_cond_hidden_ratio": 1.0,
        "cond_gating_ratio": 1.0,
        "gated_linear_unit": False,
    },
    "runtime_config": {
        "cfg_number": 1,
        "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
        "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
        "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
        "noise2clean_kvrange": [5, 4, 3, 2],
        "clean_chunk_kvrange": 1,
        "clean_t": 0.9999,
        "seed": 1234,
        "num_frames": 96,
        "video_size_h": 720,
        "video_size_w": 720,
        "num_steps": 64,
        "window_size": 4,
        "fps": 24,
        "chunk_width": 6,
        "load": "./downloads/4.5B_distill",
        "t5_pretrained": "./downloads/t5_pretrained",
        "t5_device": "cpu",
        "vae_pretrained": "./downloads/vae",
        "scale_factor": 0.18215,
        "temporal_downsample_factor": 4,
    },
    "engine_config": {
        "distributed_backend": "nccl",
        "distributed_timeout_minutes": 15,
        "pp_size": 1,
        "cp_size": 1,
        "cp_strategy": "cp_ulysses",
        "ulysses_overlap_degree": 1,
        "fp8_quant": False,
        "distill_nearly_clean_chunk_threshold": 0.3,
        "shortcut_mode": "8,16,16",
        "distill": True,
        "kv_offload": True,
        "enable_cuda_graph": False,
    },
}
_MODEL_24B = {
    "num_layers": 48,
    "hidden_size": 6144,
    "ffn_hidden_size": 16384,
    "num_attention_heads": 48,
    "x_rescale_factor": 0.1,
    "half_channel_vae": True,
    "in_channels": 32,
    "out_channels": 32,
    "gated_linear_unit": True,
}
# Heads a key-value head and the feed-forward's width a channel are the release's.
_SMALL_CAPTIONS = {"caption_channels": 32, "caption_max_length": 60}
SMALL_MAGI = {
    "4.5B": _SMALL_CAPTIONS
    | {"num_layers": 2, "hidden_size": 96, "ffn_hidden_size": 384}
    | {"num_attention_heads": 6, "num_query_groups": 2, "kv_channels": 16},
    "24B": _SMALL_CAPTIONS
    | {"num_layers": 3, "hidden_size": 192, "ffn_hidden_size": 512}
    | {"num_attention_heads": 12, "num_query_groups": 2, "kv_channels": 16},
}
SMALL_SKYREELS = {
    "1.3B": {"num_attention_heads": 3, "attention_head_dim": 16, "ffn_dim": 96, "num_layers": 2},
    "14B": {"num_attention_heads": 5, "attention_head_dim": 16, "ffn_dim": 128, "num_layers": 3},
}


def _in_layer(name: str, layer: int) -> str:
    return re.sub(r"^blocks\.\d+\.", f"blocks.{layer}.", name)


def in_layers(keys: Iterable[str]) -> set[str]:
    """Names without the layers' numbers."""
    return {re.sub(r"(blocks|layers)\.\d+\.", r"\1.*.", key) for key in keys}


def magi_document(size: str, distill: bool, **model: Any) -> dict[str, dict[str, Any]]:
    """The official configuration of a release, with entries of ``model_config`` exchanged."""
    document = deepcopy(_DOCUMENT)
    runtime, engine = document["runtime_config"], document["engine_config"]
    if size == "24B":
        document["model_config"] |= _MODEL_24B
        runtime |= {"video_size_w": 1280, "num_steps": 16, "t5_device": "cuda"}
        engine["cp_size"] = 8
    if not distill:
        runtime |= {"cfg_number": 3, "num_steps": {"4.5B": 64, "24B": 32}[size]}
        engine["distill"] = False
    runtime["load"] = f"./downloads/{size}_{'distill' if distill else 'base'}"
    document["model_config"] |= model
    return document


def write_magi(
    download: Path, size: str, distill: bool, dit: MagiDit, vae: MagiVae, text: T5EncoderModel, pickled: bool = False
) -> Path:
    """As downloaded: ckpt/magi/<release>, ckpt/vae, ckpt/t5, and the special tokens beside; returns the first.

    Args:
        dit, vae, text: on device "meta" where headers are enough.
        pickled: the text encoder's weights, as they are published.
    """
    release = download / "ckpt" / "magi" / f"{size}_{'distill' if distill else 'base'}"
    write_shards(
        release / ("inference_weight.distill" if distill else "inference_weight"), "model", dit.state_dict(), 4
    )
    folder = download / "ckpt" / "vae"
    write_tensors(folder / "diffusion_pytorch_model.safetensors", vae.state_dict())
    config = {"_class_name": "ViTVAE", "ddconfig": asdict(vae.config), "model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    t5 = download / "ckpt" / "t5" / "t5-v1_1-xxl"
    text.config.save_pretrained(t5)
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    write_shards(t5, stem, text.to(torch.bfloat16).state_dict(), 2, suffix=suffix)
    write_sentencepiece(t5)
    other = np.random.default_rng(0).standard_normal((17, text.config.d_model), np.float32)
    tokens = {"caption_token": other[:1], "logo_token": other[:1], "other_tokens": other}
    np.savez(download / "ckpt" / "special_tokens.npz", **tokens)
    return release


def write_small_magi(download: Path, size: str, distill: bool) -> tuple[Path, MagiDit, MagiVae, T5EncoderModel]:
    """A whole checkpoint of few narrow layers, with the release's structure and settings; and what was written."""
    torch.manual_seed(0)
    dit = randomised(MagiDit(replace(MAGI_NETWORKS[size], distill=distill, **SMALL_MAGI[size])))
    vae = randomised(MagiVae(VaeConfig(video_size=32, video_length=12, embed_dim=256, depth=1, num_heads=2)))
    width = SMALL_MAGI[size]["caption_channels"]
    config = T5Config(
        vocab_size=160, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    text = randomised(T5EncoderModel(config))
    release = write_magi(download, size, distill, dit, vae, text, pickled=True)
    (release / "config.json").write_text(json.dumps(magi_document(size, distill, **SMALL_MAGI[size])), encoding="utf-8")
    return release, dit, vae, text


def write_sentencepiece(directory: Path) -> None:
    """A tokenizer as T5's is published, without tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT, "blue squares move right"] * 5),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(special | {"extra_ids": 100, "tokenizer_class": "T5Tokenizer"}), encoding="utf-8"
    )


def write_skyreels(
    directory: Path, transformer: SkyReelsV2Transformer3DModel, vae: AutoencoderKLWan, text: UMT5EncoderModel
) -> Path:
    """As diffusers lays it out; the parts may be on device "meta"."""
    index = {
        "_class_name": "SkyReelsV2DiffusionForcingPipeline",
        "transformer": ["diffusers", type(transformer).__name__],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    set_dtypes(transformer, torch.bfloat16)
    write_shards(directory / "transformer", "diffusion_pytorch_model", transformer.state_dict(), 3)
    transformer.save_config(directory / "transformer")
    write_rest(directory, vae, text)
    return directory


def write_rest(directory: Path, vae: AutoencoderKLWan, text: UMT5EncoderModel) -> None:
    """The folders beside the transformer."""
    write_tensors(directory / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())
    vae.save_config(directory / "vae")
    write_shards(directory / "text_encoder", "model", text.to(torch.bfloat16).state_dict(), 3)
    text.config.save_pretrained(directory / "text_encoder")
    write_tokenizer(directory)


def write_original_skyreels(directory: Path, transformer: SkyReelsV2Transformer3DModel, num_shards: int) -> Path:
    """A transformer as originally released: names of the original code's weights, no index, pickles beside."""
    config, own = transformer.config, transformer.state_dict()
    # Recorded with the original code's outputs: its names, and diffusers' for them.
    names = {
        _in_layer(original, layer): _in_layer(theirs, layer)
        for original, theirs in skyreels_manifest("forward")["key_map"].items()
        for layer in range(config.num_layers)
        if config.inject_sample_info or not original.startswith("fps_")
    }
    weights = {original: own[theirs] for original, theirs in names.items()}
    write_shards(directory, "model", weights, num_shards, index=False)
    width = config.num_attention_heads * config.attention_head_dim
    document = {"_class_name": "WanModel", "num_heads": config.num_attention_heads, "dim": width, "in_dim": 16}
    document |= {name: config[name] for name in ("ffn_dim", "num_layers", "inject_sample_info", "freq_dim", "eps")}
    document |= {"out_dim": 16, "model_type": "t2v", "text_len": 512}
    if config.text_dim != 4096:  # the original configurations leave it out
        document["text_dim"] = config.text_dim
    (directory / "config.json").write_text(json.dumps(document), encoding="utf-8")
    (directory / "Wan2.1_VAE.pth").write_bytes(b"never opened")
    return directory


def small_skyreels(size: str) -> tuple[SkyReelsV2Transformer3DModel, AutoencoderKLWan, UMT5EncoderModel]:
    """A few narrow layers with a release's structure, and a VAE and a text encoder that go with them."""
    torch.manual_seed(0)
    small = {"text_dim": 32, "freq_dim": 32} | SMALL_SKYREELS[size]
    transformer = SkyReelsV2Transformer3DModel(**SKYREELS_NETWORKS[size] | small)
    return randomised(transformer), tiny_vae().vae, tiny_text_encoder().eval()


@torch.no_grad()
def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Noise on every parameter, those that begin as ones or zeros too: none can be taken for another unseen."""
    for parameter in module.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)
