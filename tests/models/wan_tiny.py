"""A whole causal Wan, tiny, with random weights, made in a moment; also as a loader that a job names."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer

from flowcache.models.wan import Sampling, Wan
from flowcache.models.wan.network import WanNetwork
from flowcache.models.wan.text import TextEncoder
from tests.models.skyreels_pipeline import tiny_text_encoder, tiny_vae, write_tokenizer
from tests.models.wan_goldens import config


def tiny_wan(**settings: Any) -> Wan:
    """A model with such settings of Sampling."""
    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        tokenizer = AutoTokenizer.from_pretrained(Path(directory) / "tokenizer")
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**config() | {"text_dim": 32}).eval().requires_grad_(False)
    text = TextEncoder(tiny_text_encoder(), tokenizer, max_length=12)
    return Wan(WanNetwork(transformer), tiny_vae(), text, Sampling(**settings))


def windowed(checkpoint: Path, device: str = "cpu") -> Wan:
    """As a configuration's ``model.loader``: a window of three chunks, one of them the sink. Reads no checkpoint."""
    return tiny_wan(solver="unipc", window_frames=9, sink_frames=3)
