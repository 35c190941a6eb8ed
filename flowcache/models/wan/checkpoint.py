"""Causal Wan's weights: published files and diffusers' folders.

A published file (of Self-Forcing, Causal-Forcing, LongLive, Rolling Forcing) is a pickle of ``generator_ema`` and
``generator``, or safetensors; its names are Wan's own after ``model.``. VAE, text encoder and tokenizer are those of
Wan 2.1, original or for diffusers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from flowcache.models.checkpoint import CheckpointError, Stored, fill, mismatch, read_headers, read_json, shortened
from flowcache.models.device import usable_device
from flowcache.models.inventory import Inventory, Part, check_stored, check_text_encoder
from flowcache.models.wan.config import NETWORKS, Sampling
from flowcache.models.wan.files import (
    TRANSFORMERS,
    WanFiles,
    chooser,
    is_wan,
    loaded_files,
    locate,
    release_of,
)
from flowcache.models.wan.lora import adapter_headers, misfit, read_adapter
from flowcache.models.wan.modules import (
    SAFETENSORS,
    diffusers_config,
    empty_vae,
    fill_rope,
    one_file,
    read_config,
    reader,
    set_dtypes,
    vae_headers,
)
from flowcache.models.wan.names import transformer_name, unwrapped
from flowcache.models.wan.network import unusable
from flowcache.models.wan.umt5 import check_original

__all__ = ["is_wan", "load_transformer", "loaded_files", "locate", "verify"]

SHOWN = ("steps", "shift", "block_frames", "window_frames", "sink_frames")  # of the settings, in an inventory
_EXAMPLE = "patch_embedding.weight"


def load_transformer(
    files: WanFiles,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    lora_alpha: float | None = None,
) -> WanTransformer3DModel:
    """The transformer of a checkpoint, with its adapter merged in float32, if it has one.

    Args:
        dtype: of the matrices; norms, time embeddings and modulation tables stay float32.
        weights: of a published file, see ``chooser``.
        lora_alpha: see ``read_adapter``.

    Everything is checked from headers before a weight is read. Raises CheckpointError saying what is missing or wrong.
    """
    device = usable_device(device)
    stored = transformer_headers(files.transformer, weights)
    transformer = empty_transformer(files.transformer, stored)
    shapes = _shapes(transformer)
    problem = mismatch(shapes, stored)
    if problem:
        raise CheckpointError(
            f"the weights in {files.transformer} do not fit the transformer: {problem}. Download them again, or put "
            "the config.json that belongs to them beside them"
        )
    adapter = None if files.lora is None else read_adapter(files.lora, shapes, lora_alpha)
    fill_rope(transformer)
    set_dtypes(transformer, dtype)
    read = reader(files.transformer, chooser(weights))
    keys = {(tensor.path, tensor.name): key for key, tensor in stored.items()}

    def read_merged(path: Path, names: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read(path, names, device):
            yield name, adapter.merge(keys[path, name], tensor)

    fill(transformer, stored, device, read=read if adapter is None else read_merged)
    return transformer


def transformer_headers(place: Path, weights: str | None = None) -> dict[str, Stored]:
    """The tensors of a transformer's folder or file by diffusers' names, as headers.

    Args:
        weights: of a published file, see ``chooser``.

    Raises CheckpointError for files that are missing or damaged and for weights that are not there.
    """
    if weights is not None and (place.is_dir() or place.suffix == SAFETENSORS):
        raise CheckpointError(f"{place} holds one set of weights, and weights={weights!r} is not for it; leave it out")
    found = read_headers(place) if place.is_dir() else one_file(place, chooser(weights))
    if any(name.startswith("condition_embedder.") for name in found):  # diffusers' names
        return found
    stored = {transformer_name(unwrapped(name)): tensor for name, tensor in found.items()}
    if len(stored) < len(found):
        raise CheckpointError(f"{place} holds tensors twice, with and without 'model.'; use the published file")
    if _EXAMPLE not in stored:
        raise CheckpointError(
            f"{place} holds no {_EXAMPLE} (but {shortened(sorted(found)) or 'nothing'}): names are expected to be Wan's"
            " own, with 'model.' before them or nothing; give a published file"
        )
    return stored


def empty_transformer(place: Path, stored: Mapping[str, Stored] | None = None) -> WanTransformer3DModel:
    """The transformer of a folder or file on device "meta": as config.json says, or the released one of its width.

    Args:
        stored: its headers, if they are known.

    Raises CheckpointError.
    """
    folder = place if place.is_dir() else place.parent
    if (folder / "config.json").is_file() or place.is_dir():
        config = read_config(folder)
    else:
        config = _released(place, transformer_headers(place) if stored is None else stored)
    try:
        if "num_heads" in config:  # in the original's words
            config = diffusers_config(config)
        elif config.get("_class_name", TRANSFORMERS[0]) not in TRANSFORMERS:
            raise ValueError(f"it is of {config['_class_name']}")
        with torch.device("meta"):
            transformer = WanTransformer3DModel.from_config(config)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not of a Wan 2.1 transformer ({error})") from error
    problem = unusable(transformer.config)
    if problem:
        raise CheckpointError(f"{place}: {problem}; use a text-to-video checkpoint of Wan 2.1")
    return transformer


def sampling_of(transformer: Path) -> Sampling:
    """The settings that a transformer's folder or file is made for: of ``sampling.json`` beside it, else its release's.

    Raises CheckpointError for a file that holds none.
    """
    own, release = transformer.parent / "sampling.json", release_of(transformer)
    if not own.is_file():
        return Sampling().replaced({} if release is None else release.settings)
    try:
        return Sampling().replaced(read_json(own, "a list of sampling settings"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{own} does not hold sampling settings ({error})") from error


def verify(path: Path) -> Inventory:
    """What a checkpoint holds and what is wrong with it, from headers and small files alone."""
    inventory = Inventory("causal Wan", path)
    try:
        files = locate(path)
        stored = transformer_headers(files.transformer)
        transformer = empty_transformer(files.transformer, stored)
    except CheckpointError as error:
        inventory.problems.append(str(error))
        return inventory
    release, config, shapes = release_of(files.transformer), transformer.config, _shapes(transformer)
    inventory.name = f"{release.name if release else 'Wan'} {_size_of(config)}"
    part = check_stored("transformer", files.transformer, transformer.state_dict(), lambda: stored)
    inventory.parts.append(part)
    if files.lora is not None:
        inventory.parts.append(_check_adapter(files.lora, shapes))
    try:
        vae = empty_vae(files.vae)
        part = check_stored("vae", files.vae, vae.state_dict(), lambda: vae_headers(files.vae))
        if not part.problems and vae.config.z_dim != config.in_channels:
            part.problems.append(
                f"the vae in {files.vae} makes latents of {vae.config.z_dim} channels, and the transformer takes "
                f"{config.in_channels}; use the one that belongs to these weights"
            )
        inventory.parts.append(part)
    except CheckpointError as error:
        inventory.parts.append(Part("vae", files.vae, problems=[str(error)]))
    text = ("text encoder", files.text_encoder, files.tokenizer)
    if files.text_encoder.is_file():
        inventory.parts.append(check_original(*text, config.text_dim))
    else:
        inventory.parts.append(check_text_encoder(*text, "UMT5EncoderModel", config.text_dim))
    try:
        sampling = sampling_of(files.transformer)
        inventory.settings = {name: getattr(sampling, name) for name in SHOWN}
    except CheckpointError as error:
        inventory.problems.append(str(error))
    return inventory


def _check_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Part:
    part = Part("adapter", path)
    try:
        part.tensors = adapter_headers(path)
        problem = misfit(path, part.tensors, shapes)
    except CheckpointError as error:
        problem = str(error)
    part.problems += [problem] if problem else []
    return part


def _shapes(transformer: WanTransformer3DModel) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in transformer.state_dict().items()}


def _released(place: Path, stored: Mapping[str, Stored]) -> dict[str, Any]:
    """The configuration of the released network of these weights' width."""
    width = stored[_EXAMPLE].shape[0]
    for network in NETWORKS.values():
        if network["num_attention_heads"] * network["attention_head_dim"] == width:
            return network
    raise CheckpointError(
        f"{place} is of no released Wan 2.1 ({width} channels): put the config.json that belongs to it beside it"
    )


def _size_of(config: Any) -> str:
    """The released network that a configuration is of."""
    for size, network in NETWORKS.items():
        if all(config[key] == network[key] for key in ("num_attention_heads", "ffn_dim", "num_layers")):
            return size
    return "of its own size"
