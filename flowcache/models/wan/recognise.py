"""Which causal Wan a checkpoint is, from its configuration or its weights' headers, and whether it takes many steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowcache.models.checkpoint import CheckpointError, Stored
from flowcache.models.recognised import Recognised
from flowcache.models.wan.checkpoint import empty_transformer, sampling_of, transformer_headers
from flowcache.models.wan.config import NETWORKS
from flowcache.models.wan.files import AVERAGED, PLAIN, locate
from flowcache.models.wan.modules import read_config

# Published files of many steps, before they are distilled (thu-ml/Causal-Forcing: ar_diffusion.pt).
_MANY_STEPS_FILES = ("ar_diffusion",)


def recognise(path: Path) -> Recognised:
    """A checkpoint that ``is_wan``. What is wrong with a folder is left for loading to say.

    Raises CheckpointError for a folder of several published files, and for a file that holds no such transformer.
    """
    place = locate(path).transformer
    model = "wan_multistep" if takes_many_steps(place) else "wan"
    if place.is_file():
        config = empty_transformer(place, _headers(place)).config
    else:
        try:
            config = read_config(place)
        except CheckpointError:
            return Recognised("causal Wan", model, __package__)
    return Recognised("causal Wan", model, __package__, *size_and_width(config, NETWORKS))


def _headers(file: Path) -> Mapping[str, Stored]:
    """Of any of the sets of weights that a published file holds: which one is loaded, an option may say."""
    try:
        return transformer_headers(file)
    except CheckpointError:
        for weights in (AVERAGED, PLAIN):
            with suppress(CheckpointError):
                return transformer_headers(file, weights)
        raise


def takes_many_steps(transformer: Path) -> bool:
    """By ``sampling.json`` beside it, or without one by the name of a published file; by default it takes few."""
    try:
        many = sampling_of(transformer).solver == "unipc"
    except CheckpointError:
        return False
    has_settings = (transformer.parent / "sampling.json").is_file()
    return many or (not has_settings and transformer.is_file() and transformer.stem.startswith(_MANY_STEPS_FILES))


def size_and_width(
    config: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]
) -> tuple[str | None, int | None]:
    """Of a transformer's configuration, in diffusers' words or the original's: the released network, and channels."""
    try:
        if "num_heads" in config:
            width, num_layers = config["dim"], config["num_layers"]
        else:
            width = config["num_attention_heads"] * config["attention_head_dim"]
            num_layers = config["num_layers"]
    except (KeyError, TypeError):
        return None, None
    if not isinstance(width, int):
        return None, None
    for size, network in networks.items():
        if (width, num_layers) == (
            network["num_attention_heads"] * network["attention_head_dim"],
            network["num_layers"],
        ):
            return size, width
    return None, width
