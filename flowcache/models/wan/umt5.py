"""UMT5's encoder from the one file of the original Wan 2.1, ``models_t5_umt5-xxl-enc-bf16.pth``.

Source of its sizes: Wan-Video/Wan2.1: wan/modules/t5.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flowcache.models.checkpoint import CheckpointError, Stored, fill, mismatch
from flowcache.models.inventory import TIED, Part, check_captions, check_stored
from flowcache.models.wan.modules import one_file, reader
from flowcache.models.wan.names import umt5_name

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import UMT5EncoderModel


class OriginalUmt5:
    """Reads the file as transformers' classes read their folders."""

    @staticmethod
    def from_pretrained(file: Path, dtype: torch.dtype, **_: Any) -> tuple[UMT5EncoderModel, dict[str, list]]:
        """The encoder in ``dtype``, and the names of what the file lacks: none. Raises CheckpointError."""
        stored = _headers(file)
        encoder = _empty(file, stored)
        problem = mismatch({key: tuple(t.shape) for key, t in encoder.state_dict().items()}, stored, TIED)
        if problem:
            raise CheckpointError(problem)
        stored[TIED[1]] = stored[TIED[0]]
        fill(encoder.to(dtype), stored, torch.device("cpu"), read=reader(file))
        return encoder, {"missing_keys": [], "mismatched_keys": []}


def check_original(name: str, file: Path, tokenizer: Path, channels: int) -> Part:
    """As ``flowcache.models.inventory.check_text_encoder``, of such a file."""
    try:
        encoder = _empty(file, _headers(file))
    except CheckpointError as error:
        return check_captions(Part(name, file, problems=[str(error)]), tokenizer, channels, channels)
    part = check_stored(name, file, encoder.state_dict(), lambda: _headers(file), optional=TIED)
    return check_captions(part, tokenizer, encoder.config.d_model, channels)


def _headers(file: Path) -> dict[str, Stored]:
    return {umt5_name(name): tensor for name, tensor in one_file(file).items()}


def _empty(file: Path, stored: Mapping[str, Stored]) -> UMT5EncoderModel:
    """The encoder of the file's shapes, on device "meta". Raises CheckpointError."""
    from transformers import UMT5Config, UMT5EncoderModel

    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention.", "encoder.block.0.layer.1.DenseReluDense."
    try:
        vocabulary, width = stored[TIED[0]].shape
        buckets, heads = stored[f"{attention}relative_attention_bias.weight"].shape
        config = UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=stored[f"{attention}q.weight"].shape[0] // heads,
            d_ff=stored[f"{feed_forward}wi_0.weight"].shape[0],
            num_layers=1 + max(int(name.split(".")[2]) for name in stored if name.startswith("encoder.block.")),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu",
        )
        with torch.device("meta"):
            return UMT5EncoderModel(config)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file} is not the UMT5 encoder of Wan 2.1 ({error}); download it again") from error
