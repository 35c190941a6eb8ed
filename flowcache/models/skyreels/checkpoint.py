"""SkyReels-V2's weights: diffusers' layout, or the original release's names, which this module also converts.

``python -m flowcache.models.skyreels.checkpoint <original> <destination>`` writes the transformer of an original
checkpoint (config.json and safetensors side by side) as diffusers lays it out.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel

from flowcache.models.checkpoint import (
    PICKLE_SUFFIXES,
    CheckpointError,
    check_weights,
    load_weights,
    part_files,
    read_json,
)
from flowcache.models.inventory import Inventory, check_part, check_text_encoder
from flowcache.models.skyreels.config import NETWORKS, Sampling
from flowcache.models.skyreels.network import unusable
from flowcache.models.wan.modules import diffusers_config as wan_config
from flowcache.models.wan.modules import empty_vae, fill_rope, read_config, set_dtypes
from flowcache.models.wan.names import transformer_name

_SCHEDULER = "scheduler/scheduler_config.json"
# What Wan has not (SkyworkAI/SkyReels-V2: skyreels_v2_infer/modules/transformer.py).
_FRAME_RATE = {"fps_projection.0.": "fps_projection.net.0.proj.", "fps_projection.2.": "fps_projection.net.2."}


def diffusers_name(original: str) -> str:
    """A parameter's name in diffusers' transformer; names that are the same in both stay."""
    for own, theirs in _FRAME_RATE.items():
        if original.startswith(own):
            return theirs + original[len(own) :]
    return transformer_name(original)


def diffusers_config(original: dict[str, Any]) -> dict[str, Any]:
    """An original ``config.json`` as arguments of SkyReelsV2Transformer3DModel."""
    return wan_config(original) | {"inject_sample_info": original.get("inject_sample_info", False)}


def load_transformer(
    directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> SkyReelsV2Transformer3DModel:
    """The transformer in a directory, under diffusers' or the original names.

    Args:
        directory: config.json and safetensors, whole or sharded.
        dtype: of the matrices; norms, time embeddings and modulation tables stay float32. None keeps the file's.

    Raises CheckpointError saying what is missing or wrong.
    """
    transformer, is_original = empty_transformer(directory)
    rename = diffusers_name if is_original else None
    check_weights(transformer, directory, rename)
    fill_rope(transformer)
    set_dtypes(transformer, dtype or torch.float32)
    load_weights(transformer, directory, device, keep_dtype=dtype is not None, rename=rename)
    return transformer


def empty_transformer(directory: Path) -> tuple[SkyReelsV2Transformer3DModel, bool]:
    """The transformer that a directory's config.json describes, on device "meta", and whether in the original's words.

    Raises CheckpointError for a configuration that is missing or wrong.
    """
    config = read_config(directory)
    is_original = "num_heads" in config
    made_for = config.get("_class_name", "SkyReelsV2Transformer3DModel")
    if not is_original and made_for != "SkyReelsV2Transformer3DModel":
        raise CheckpointError(
            f"{directory / 'config.json'} is of {made_for} and not of a SkyReels-V2 transformer; give a checkpoint of "
            "the diffusion-forcing family, such as SkyReels-V2-DF-1.3B-540P-Diffusers"
        )
    try:
        if is_original:
            config = diffusers_config(config)
        with torch.device("meta"):
            return SkyReelsV2Transformer3DModel.from_config(config), is_original
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{directory / 'config.json'} is not of a SkyReels-V2 transformer ({error})") from error


def is_skyreels(directory: Path) -> bool:
    """Whether a directory looks like a SkyReels-V2 checkpoint, of diffusers or original, whole or not."""
    if (directory / "transformer").is_dir():
        return True
    try:
        return "num_heads" in read_json(directory / "config.json", "a configuration")
    except (OSError, CheckpointError):
        return False


def loaded_files(directory: Path) -> dict[str, Path]:
    """What a checkpoint is loaded from, by its name in diffusers' layout, and what says there which pipeline it is of.

    Files that are missing are left out.
    """
    parts = {name: directory / name for name in ("transformer", "vae", "text_encoder", "tokenizer")}
    if not parts["transformer"].is_dir():
        parts["transformer"] = directory  # as originally released
    single = {name: directory / name for name in ("model_index.json", "sampling.json", _SCHEDULER)}
    return {name: path for name, path in single.items() if path.is_file()} | {
        f"{name}/{path.name}": path for name, folder in parts.items() for path in part_files(folder)
    }


def read_sampling(directory: Path) -> Sampling:
    """A checkpoint's own settings, where it has any. Raises CheckpointError."""
    settings = directory / "sampling.json"
    return Sampling.from_json(settings) if settings.is_file() else Sampling()


def verify(directory: Path) -> Inventory:
    """What a checkpoint holds and what is wrong with it, from headers and small files alone."""
    whole = (directory / "transformer").is_dir()
    folder = directory / "transformer" if whole else directory
    inventory = Inventory("SkyReels-V2", directory)
    width, config = 0, None
    try:
        transformer, is_original = empty_transformer(folder)
        config, width = transformer.config, transformer.config.text_dim
        inventory.name = f"SkyReels-V2 {_size_of(config)}, {'original names' if is_original else 'diffusers'}"
        rename = diffusers_name if is_original else None
        problem = unusable(config)
        part = check_part("transformer", folder, transformer.state_dict(), problem and f"{folder}: {problem}", rename)
        inventory.parts.append(part)
    except CheckpointError as error:
        inventory.problems.append(str(error))
    if not whole:
        pickled = sorted(path.name for path in directory.glob("*") if path.suffix in PICKLE_SUFFIXES)
        inventory.notes.append(
            "a transformer alone, as originally released: to generate, convert it with `python -m "
            f"flowcache.models.skyreels.checkpoint {directory} <destination>` and put the folders vae, text_encoder "
            "and tokenizer of any SkyReels-V2 checkpoint for diffusers beside it"
            + (f" ({', '.join(pickled)} are pickles, which are not opened)" if pickled else "")
        )
        return inventory
    try:
        inventory.parts.append(check_part("vae", directory / "vae", empty_vae(directory / "vae").state_dict()))
    except CheckpointError as error:
        inventory.parts.append(check_part("vae", directory / "vae", {}, str(error)))
    text = directory / "text_encoder"
    if config is not None:
        part = check_text_encoder("text encoder", text, directory / "tokenizer", "UMT5EncoderModel", width)
        inventory.parts.append(part)
    try:
        sampling = read_sampling(directory)
        names = ("num_steps", "height", "width", "guidance_scale", "causal_block_size", "base_num_frames", "ar_step")
        inventory.settings = {name: getattr(sampling, name) for name in names}
    except CheckpointError as error:
        inventory.problems.append(str(error))
    return inventory


def _size_of(config: Any) -> str:
    """The released network that a configuration is of."""
    for size, network in NETWORKS.items():
        if all(config[key] == network[key] for key in ("num_attention_heads", "ffn_dim", "num_layers")):
            return size
    return "of its own size"


def convert(original: Path, destination: Path) -> None:
    """Write an original transformer to ``destination``/transformer, whole or not at all."""
    transformer = load_transformer(original, dtype=None)
    final = destination / "transformer"
    if final.exists():
        raise CheckpointError(f"{final} exists already; remove it or choose another destination")
    part = destination / "transformer.part"
    shutil.rmtree(part, ignore_errors=True)
    transformer.save_pretrained(part)
    part.rename(final)


def main(arguments: list[str]) -> int:
    """Convert an original transformer; returns the exit code: 0 done, 2 bad input."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").replace("``", "`").strip())
        return 0
    if len(arguments) != 2:
        print(
            "usage: python -m flowcache.models.skyreels.checkpoint <original checkpoint> <destination>", file=sys.stderr
        )
        return 2
    try:
        convert(*map(Path, arguments))
    except CheckpointError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
