"""Wan's transformer and VAE as diffusers' modules: made on device "meta" as a configuration says, for weights to fill.

Diffusers' layout is a folder of ``config.json`` and safetensors; the original VAE is one file under the original names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from flowcache.models.checkpoint import (
    CheckpointError,
    Stored,
    file_headers,
    fill,
    mismatch,
    read_headers,
    read_json,
    read_safetensors,
)
from flowcache.models.device import usable_device
from flowcache.models.pickled import Choose, pickled_headers, read_pickled
from flowcache.models.wan.names import vae_name
from flowcache.models.wan.network import Transformer

SAFETENSORS = ".safetensors"


def read_config(directory: Path) -> dict[str, Any]:
    """Of a network's folder. Raises CheckpointError."""
    path = directory / "config.json"
    try:
        return read_json(path, "JSON of a configuration")
    except FileNotFoundError:
        raise CheckpointError(
            f"no configuration at {path}; give the directory of a downloaded checkpoint in diffusers' layout"
        ) from None


def diffusers_config(original: dict[str, Any]) -> dict[str, Any]:
    """An original ``config.json`` as arguments of WanTransformer3DModel."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": original["num_heads"],
        "attention_head_dim": original["dim"] // original["num_heads"],
        "in_channels": original["in_dim"],
        "out_channels": original["out_dim"],
        "text_dim": original.get("text_dim", 4096),
        "freq_dim": original["freq_dim"],
        "ffn_dim": original["ffn_dim"],
        "num_layers": original["num_layers"],
        "eps": original.get("eps", 1e-6),
    }


def fill_rope(transformer: Transformer) -> None:
    """Work out the rotary tables of a transformer made on device "meta": they are no part of the weights."""
    rope = transformer.rope
    transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)


def set_dtypes(transformer: Transformer, dtype: torch.dtype) -> None:
    """Put the matrices in ``dtype`` and leave norms, time embeddings and modulation tables in float32."""
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)


def one_file(path: Path, choose: Choose | None = None) -> dict[str, Stored]:
    """The tensors of one file, pickled or not, by its own names, as headers. Raises CheckpointError.

    Args:
        choose: the part of a pickled file that counts.
    """
    return file_headers(path) if path.suffix == SAFETENSORS else pickled_headers(path, choose)


def reader(path: Path, choose: Choose | None = None) -> Any:
    """What reads the tensors of such a file, see ``flowcache.models.checkpoint.fill``."""
    return read_safetensors if path.suffix == SAFETENSORS or path.is_dir() else partial(read_pickled, choose=choose)


def vae_headers(place: Path) -> dict[str, Stored]:
    """The tensors of a VAE's folder, or of a file of the original release, by diffusers' names; CheckpointError."""
    if place.is_dir():
        return read_headers(place)
    if not place.is_file():
        raise CheckpointError(
            f"no VAE at {place}; download Wan2.1_VAE.pth of Wan-AI/Wan2.1-T2V-1.3B, or the folder vae of the same for "
            "diffusers"
        )
    return {vae_name(name): tensor for name, tensor in one_file(place).items()}


def empty_vae(place: Path) -> AutoencoderKLWan:
    """The VAE of a folder's config.json, or of an original file's shapes, on device "meta", float32.

    Raises CheckpointError.
    """
    try:
        config = read_config(place) if place.is_dir() else _vae_config(vae_headers(place))
        with torch.device("meta"):
            return AutoencoderKLWan.from_config(config).float()
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        file = place / "config.json" if place.is_dir() else place
        raise CheckpointError(f"{file} is not of a Wan 2.1 VAE ({error}); download it again") from error


def load_vae(place: Path, device: torch.device | str = "cpu") -> AutoencoderKLWan:
    """The VAE of a folder or an original file, in float32, as upstream runs it. CheckpointError says what is wrong."""
    vae, stored = empty_vae(place), vae_headers(place)
    problem = mismatch({key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}, stored)
    if problem:
        raise CheckpointError(
            f"the weights in {place} do not fit {'the configuration' if place.is_dir() else 'the VAE of Wan 2.1'}: "
            f"{problem}. "
            + ("Use the config.json that belongs to these weights" if place.is_dir() else "Download it again")
        )
    fill(vae, stored, usable_device(device), read=reader(place))
    return vae


def _vae_config(stored: Mapping[str, Stored]) -> dict[str, Any]:
    """What the weights' shapes tell; all else is as released."""
    return {
        "base_dim": stored["encoder.conv_in.weight"].shape[0],
        "z_dim": stored["post_quant_conv.weight"].shape[0],
    }
