"""Wan's transformer as diffusers' module: made on device "meta" as a configuration says, for weights to fill."""

from __future__ import annotations

import torch

from flowcache.models.wan.network import Transformer


def fill_rope(transformer: Transformer) -> None:
    """Work out the rotary tables of a transformer made on device "meta": they are no part of the weights."""
    rope = transformer.rope
    transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)


def set_dtypes(transformer: Transformer, dtype: torch.dtype) -> None:
    """Put the matrices in ``dtype`` and leave norms, time embeddings and modulation tables in float32."""
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
