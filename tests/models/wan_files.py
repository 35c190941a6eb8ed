"""Causal Wan's checkpoints as they are published, with the golden weights or, at true size, with nothing in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from tests.models.skyreels_pipeline import WORDS, write_tokenizer
from tests.models.wan_goldens import manifest, tensors

UMT5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"


def original_config() -> dict[str, Any]:
    """config.json of the golden transformer, in the words of Wan 2.1's."""
    recorded = manifest("forward")["config"]
    names = (
        "dim",
        "eps",
        "ffn_dim",
        "freq_dim",
        "in_dim",
        "num_heads",
        "num_layers",
        "out_dim",
        "text_dim",
        "text_len",
    )
    return {"_class_name": "WanModel", "model_type": "t2v"} | {name: recorded[name] for name in names}


@cache
def transformer() -> WanTransformer3DModel:
    """diffusers' own, with the golden weights by the recorded table of names."""
    recorded = manifest("forward")["config"]
    model = WanTransformer3DModel(
        num_attention_heads=recorded["num_heads"],
        attention_head_dim=recorded["head_dim"],
        text_dim=recorded["text_dim"],
        freq_dim=recorded["freq_dim"],
        ffn_dim=recorded["ffn_dim"],
        num_layers=recorded["num_layers"],
    )
    names = {f"model.{name}": theirs for name, theirs in manifest("mapping")["transformer"].items()}
    model.load_state_dict({names[name]: tensor for name, tensor in tensors("weights").items()}, strict=True)
    return model.eval().requires_grad_(False)


@cache
def vae() -> AutoencoderKLWan:
    """diffusers' own, with the golden weights by the recorded table of names."""
    model = AutoencoderKLWan(base_dim=manifest("vae")["config"]["dim"])
    names = manifest("mapping")["vae"]
    model.load_state_dict({names[name]: tensor for name, tensor in tensors("vae_weights").items()}, strict=True)
    return model.eval().requires_grad_(False)


@cache
def text_encoder() -> UMT5EncoderModel:
    """A tiny one of the golden transformer's caption channels."""
    torch.manual_seed(3)
    config = UMT5Config(
        vocab_size=len(WORDS),
        d_model=manifest("forward")["config"]["text_dim"],
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    model = UMT5EncoderModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return model


def write_published(path: Path, **sections: Mapping[str, Tensor]) -> Path:
    """A pickled file of such sections (generator_ema, generator), and config.json: it is of no released size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(sections, path)
    (path.parent / "config.json").write_text(json.dumps(original_config()), encoding="utf-8")
    return path


def averaged(change: float = 0.0) -> dict[str, Tensor]:
    """The golden weights, as a file has averaged ones: wrapped for training."""
    return {
        name.replace("model.blocks.", "model._fsdp_wrapped_module.blocks.").replace(
            ".self_attn.", "._fsdp_wrapped_module.self_attn."
        ): tensor + change
        for name, tensor in tensors("weights").items()
    }


def write_base(directory: Path) -> Path:
    """VAE, text encoder and tokenizer as the original Wan 2.1 has them."""
    (directory / "google").mkdir(parents=True)
    torch.save(tensors("vae_weights"), directory / "Wan2.1_VAE.pth")
    torch.save(original_umt5(text_encoder()), directory / UMT5_FILE)
    write_tokenizer(directory / "google")
    (directory / "google" / "tokenizer").rename(directory / "google" / "umt5-xxl")
    return directory


def write_original(directory: Path) -> Path:
    """As Self-Forcing's README tells to download: checkpoints beside wan_models; returns the published file."""
    write_base(directory / "wan_models" / "Wan2.1-T2V-1.3B")
    return write_published(directory / "checkpoints" / "self_forcing_dmd.pt", generator_ema=averaged())


def write_diffusers(directory: Path) -> Path:
    """The whole as diffusers lays it out."""
    transformer().save_pretrained(directory / "transformer")
    vae().save_pretrained(directory / "vae")
    text_encoder().save_pretrained(directory / "text_encoder")
    write_tokenizer(directory)
    return directory


def original_umt5(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    """Its weights under the names of Wan-Video/Wan2.1: wan/modules/t5.py."""
    weights = {
        "token_embedding.weight": encoder.shared.weight,
        "norm.weight": encoder.encoder.final_layer_norm.weight,
    }
    for number, block in enumerate(encoder.encoder.block):
        attention, feed_forward = block.layer
        own = attention.SelfAttention
        weights |= {
            f"blocks.{number}.{name}.weight": part.weight
            for name, part in {
                "norm1": attention.layer_norm,
                "attn.q": own.q,
                "attn.k": own.k,
                "attn.v": own.v,
                "attn.o": own.o,
                "norm2": feed_forward.layer_norm,
                "ffn.gate.0": feed_forward.DenseReluDense.wi_0,
                "ffn.fc1": feed_forward.DenseReluDense.wi_1,
                "ffn.fc2": feed_forward.DenseReluDense.wo,
                "pos_embedding.embedding": own.relative_attention_bias,
            }.items()
        }
    return {name: weight.detach() for name, weight in weights.items()}


def write_sparse_pickle(path: Path, shapes: Mapping[str, Mapping[str, tuple[int, ...]]] | Mapping[str, Any]) -> Path:
    """A file of torch.save with room for float32 tensors of such shapes and nothing in it, which takes no disk."""

    def made(shape: Any) -> Any:
        return {k: made(v) for k, v in shape.items()} if isinstance(shape, Mapping) else torch.empty(shape)

    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.serialization.skip_data():
        torch.save(made(shapes), path)
    return path
