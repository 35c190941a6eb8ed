"""Causal Wan's sampling settings, and the released networks' sizes."""

from __future__ import annotations

from typing import Any

TEMPORAL_FACTOR = 4  # pixel frames a latent frame, but for a video's first, which is one

_SHARED = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "freq_dim": 256,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
}
# Configurations of diffusers' WanTransformer3DModel: Wan 2.1 T2V, from which all causal ones are made.
NETWORKS: dict[str, dict[str, Any]] = {
    "1.3B": _SHARED | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": _SHARED | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
