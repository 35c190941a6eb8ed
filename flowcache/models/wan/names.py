"""Wan's original names of weights, and diffusers' and transformers' for the same, by rules.

Source of the original names: Wan-Video/Wan2.1: wan/modules/model.py, vae.py, t5.py.
"""

from __future__ import annotations

import re

# Beginnings of names. The norms before the cross-attention and before the feed-forward exchange their numbers.
_TRANSFORMER = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "norm2": "norm3",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{kind}_attn.{ours}": f"attn{number}.{theirs}"
        for kind, number in (("self", 1), ("cross", 2))
        for ours, theirs in {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}.items()
    },
    **{
        f"{kind}_attn.norm_{name}": f"attn{number}.norm_{name}"
        for kind, number in (("self", 1), ("cross", 2))
        for name in "qk"
    },
}
# What is replaced wherever it stands, in this order.
_VAE = {
    r"^conv1\.": "quant_conv.",
    r"^conv2\.": "post_quant_conv.",
    r"^(encoder|decoder)\.conv1\.": r"\1.conv_in.",
    r"\.head\.0\.": ".norm_out.",
    r"\.head\.2\.": ".conv_out.",
    r"\.middle\.0\.": ".mid_block.resnets.0.",
    r"\.middle\.1\.": ".mid_block.attentions.0.",
    r"\.middle\.2\.": ".mid_block.resnets.1.",
    r"\.residual\.0\.": ".norm1.",
    r"\.residual\.2\.": ".conv1.",
    r"\.residual\.3\.": ".norm2.",
    r"\.residual\.6\.": ".conv2.",
    r"\.shortcut\.": ".conv_shortcut.",
    r"\.downsamples\.": ".down_blocks.",
}
_VAE_STAGE = 4  # layers of the decoder's stages: three residual ones, and what doubles the size
_UMT5 = {
    r"^token_embedding\.": "shared.",
    r"^norm\.": "encoder.final_layer_norm.",
    r"^blocks\.": "encoder.block.",
    r"\.attn\.": ".layer.0.SelfAttention.",
    r"\.pos_embedding\.embedding\.": ".layer.0.SelfAttention.relative_attention_bias.",
    r"\.norm1\.": ".layer.0.layer_norm.",
    r"\.norm2\.": ".layer.1.layer_norm.",
    r"\.ffn\.gate\.0\.": ".layer.1.DenseReluDense.wi_0.",
    r"\.ffn\.fc1\.": ".layer.1.DenseReluDense.wi_1.",
    r"\.ffn\.fc2\.": ".layer.1.DenseReluDense.wo.",
}


def unwrapped(published: str) -> str:
    """A published checkpoint's name without what training wrapped its modules in."""
    return published.replace("_fsdp_wrapped_module.", "").removeprefix("model.")


def transformer_name(original: str) -> str:
    """A parameter's name in diffusers' transformer; names that are the same in both stay."""
    block = re.fullmatch(r"(blocks\.\d+)\.(.+)", original)
    prefix, rest, parts = ("", original, _TRANSFORMER) if block is None else (block[1] + ".", block[2], _BLOCK)
    for own, theirs in parts.items():
        if rest == own or rest.startswith(own + "."):
            return prefix + theirs + rest[len(own) :]
    return original


def vae_name(original: str) -> str:
    """A parameter's name in diffusers' AutoencoderKLWan."""
    return re.sub(r"\.upsamples\.(\d+)\.", _up_block, _replaced(original, _VAE))


def umt5_name(original: str) -> str:
    """A parameter's name in transformers' UMT5EncoderModel."""
    return _replaced(original, _UMT5)


def _replaced(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _up_block(layer: re.Match[str]) -> str:
    stage, position = divmod(int(layer[1]), _VAE_STAGE)
    part = "upsamplers.0" if position == _VAE_STAGE - 1 else f"resnets.{position}"
    return f".up_blocks.{stage}.{part}."
