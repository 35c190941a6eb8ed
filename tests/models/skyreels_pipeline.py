"""A whole tiny SkyReels-V2 checkpoint, with random weights and in diffusers' layout, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flowcache.models.wan.vae import WanVae
from tests.models.skyreels_goldens import transformer

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "moves", "left", "right", "caf\u00e9", "&")
# Sampling settings as a checkpoint may bring them: 17 latent frames a window in chunks of two.
SETTINGS = {
    "num_steps": 3,
    "height": 32,
    "width": 32,
    "ar_step": 1,
    "causal_block_size": 2,
    "base_num_frames": 21,
    "overlap_history": 5,
}


def tiny_vae() -> WanVae:
    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanVae(vae.eval().requires_grad_(False))


def write_checkpoint(directory: Path) -> Path:
    """Write the folders of a diffusers checkpoint and ``sampling.json``."""
    transformer().save_pretrained(directory / "transformer")
    tiny_vae().vae.save_pretrained(directory / "vae")
    write_text_encoder(directory)
    (directory / "sampling.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return directory


def write_text_encoder(directory: Path) -> None:
    tiny_text_encoder().save_pretrained(directory / "text_encoder")
    write_tokenizer(directory)


def tiny_text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(2)
    config = UMT5Config(
        vocab_size=len(WORDS),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    return UMT5EncoderModel(config)


def write_tokenizer(directory: Path) -> None:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(directory / "tokenizer")
