"""What diffusers' own caches need to know of SkyReels-V2's block, and do not (0.42.1).

FirstBlockCache and MagCache raise without it; they then decide for all frames at once, whatever step each is at.
"""

from __future__ import annotations

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2TransformerBlock


def register_blocks() -> None:
    """Tell diffusers what SkyReels-V2's block returns, once for the process: its hidden states alone."""
    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    TransformerBlockRegistry.register(SkyReelsV2TransformerBlock, metadata)
