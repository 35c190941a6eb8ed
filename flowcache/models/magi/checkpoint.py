"""A MAGI-1 checkpoint on disk: where its parts lie, which release it is, and whether its files are whole.

Source of names and settings: SandAI-org/MAGI-1: inference/infra/checkpoint/checkpointing.py, inference/model/t5,
inference/pipeline/prompt_process.py, example/*/*_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flowcache.models.checkpoint import CheckpointError, Stored, around, part_files, read_headers, read_json
from flowcache.models.inventory import Inventory, check_part, check_text_encoder
from flowcache.models.magi.config import NETWORKS, TEMPORAL_FACTOR, MagiConfig, Runtime
from flowcache.models.magi.network import MagiDit
from flowcache.models.magi.text import load_special_tokens
from flowcache.models.magi.vae import MagiVae, VaeConfig

WEIGHTS_FOLDERS = {True: ("inference_weight.distill", "inference_weight"), False: ("inference_weight",)}
QUANTISED_WEIGHTS = "inference_weight.fp8"  # beginning of the folder's name in the releases called distill+fp8_quant
SPECIAL_TOKENS = ("special_tokens.safetensors", "special_tokens.npz", "example/assets/special_tokens.npz")
# What all released configurations share, against the FlowCache paper's setting.
_RELEASED = Runtime(
    prev_chunk_scales=(1.5, 1.5, 1.5, 1.0, 1.0),
    text_scales=(7.5, 7.5, 7.5, 0.0, 0.0),
    noise2clean_kvrange=(5, 4, 3, 2),
    clean_chunk_kvrange=1,
)
# The released runtime settings by network and whether it is distilled (*_base_config.json, *_distill_config.json).
# A distilled network also samples in 8, 12, 16 and 32 steps (num_steps).
RELEASES: dict[tuple[str, bool], MagiConfig] = {
    ("4.5B", False): MagiConfig(replace(NETWORKS["4.5B"], distill=False), replace(_RELEASED, cfg_number=3)),
    ("4.5B", True): MagiConfig(NETWORKS["4.5B"], _RELEASED),
    ("24B", False): MagiConfig(
        replace(NETWORKS["24B"], distill=False), replace(_RELEASED, cfg_number=3, num_steps=32, video_size_w=1280)
    ),
    ("24B", True): MagiConfig(NETWORKS["24B"], replace(_RELEASED, num_steps=16, video_size_w=1280)),
}


@dataclass(frozen=True)
class MagiFiles:
    """Where the parts of a checkpoint lie; whether they are there is not said.

    Attributes:
        config: of its config.json; without one that of the release that its weights are of.
        weights, vae, t5: directories.
        special_tokens: the file.
    """

    config: MagiConfig
    weights: Path
    vae: Path
    t5: Path
    special_tokens: Path


def is_magi(directory: Path) -> bool:
    """Whether a directory looks like a MAGI-1 checkpoint, whole or not."""
    if any(directory.glob("inference_weight*")):
        return True
    try:
        return "model_config" in read_json(directory / "config.json", "a configuration")
    except (OSError, CheckpointError):
        return False


def locate(directory: Path) -> MagiFiles:
    """The parts of a checkpoint.

    They lie in ``directory`` (vae, t5, special_tokens.npz beside the weights), or around it as downloaded: vae and t5
    (also t5_pretrained) up to two folders above, t5 with or without its own folder t5-v1_1-xxl. Where ``directory`` is
    a link or holds links to folders, around what they lead to as well. Raises CheckpointError, FileNotFoundError or
    ValueError for a configuration that is missing or wrong, and for quantised weights alone.
    """
    folders = sorted(path.name for path in directory.glob("inference_weight*") if path.is_dir())
    if folders and all(name.startswith(QUANTISED_WEIGHTS) for name in folders):
        raise CheckpointError(
            f"{directory} holds only quantised weights ({', '.join(folders)}), which this library does not run; use "
            "the release in bfloat16"
        )
    config = _config(directory)
    names = WEIGHTS_FOLDERS[config.dit.distill]
    weights = next((directory / name for name in names if (directory / name).is_dir()), directory / names[0])
    homes = around(directory)
    text = [folder / name for folder in homes for name in ("t5", "t5_pretrained")]
    text = [candidate for outer in text for candidate in (outer / "t5-v1_1-xxl", outer)]
    tokens = [folder / name for folder in homes for name in SPECIAL_TOKENS]
    return MagiFiles(
        config,
        weights,
        next((f / "vae" for f in homes if (f / "vae" / "config.json").is_file()), directory / "vae"),
        next((folder for folder in text if (folder / "config.json").is_file()), directory / "t5"),
        next((path for path in tokens if path.is_file()), directory / "special_tokens.npz"),
    )


def loaded_files(directory: Path) -> dict[str, Path]:
    """What a checkpoint is loaded from, wherever it lies, by the name that it has where all lie in ``directory``.

    Files that are missing are left out. Raises as ``locate``.
    """
    files = locate(directory)
    parts = {files.weights.name: files.weights, "vae": files.vae, "t5": files.t5}
    single = {"config.json": directory / "config.json", files.special_tokens.name: files.special_tokens}
    return {name: path for name, path in single.items() if path.is_file()} | {
        f"{name}/{path.name}": path for name, folder in parts.items() for path in part_files(folder)
    }


def read_vae_config(directory: Path) -> VaeConfig:
    """Of a VAE's folder. Raises CheckpointError."""
    path = directory / "config.json"
    try:
        config = VaeConfig(**read_json(path, "a MAGI-1 VAE configuration")["ddconfig"])
    except FileNotFoundError:
        raise CheckpointError(f"no VAE configuration at {path}; download the checkpoint's vae folder there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a MAGI-1 VAE configuration ({error}); download it again") from error
    if config.patch_length != TEMPORAL_FACTOR:
        raise CheckpointError(
            f"{path} is of a VAE of {config.patch_length} pixel frames a latent frame, and MAGI-1's has "
            f"{TEMPORAL_FACTOR}; download the VAE that belongs to these weights"
        )
    return config


def network_of(stored: Mapping[str, Stored]) -> str | None:
    """Which released network the tensors are of; None for any other. Base and distilled ones have the same tensors."""
    embedder = stored.get("x_embedder.weight")
    layers = {key.split(".")[2] for key in stored if key.startswith("videodit_blocks.layers.")}
    for name, network in NETWORKS.items():
        if embedder and (embedder.shape[0], len(layers)) == (network.hidden_size, network.num_layers):
            return name
    return None


def verify(directory: Path) -> Inventory:
    """What a checkpoint holds and what is wrong with it, from headers and small files alone."""
    try:
        files = locate(directory)
    except (CheckpointError, OSError, ValueError) as error:
        return Inventory("MAGI-1", directory, problems=[str(error)])
    config = files.config
    with torch.device("meta"):
        network = MagiDit(config.dit)
    transformer = check_part("transformer", files.weights, network.state_dict())
    found = network_of(transformer.tensors)
    described = next((size for (size, _), release in RELEASES.items() if release.dit == config.dit), None)
    if transformer.problems and found not in (None, described):
        transformer.problems[:] = [
            f"the weights in {files.weights} are those of MAGI-1 {found} and {directory / 'config.json'} describes "
            f"{described or 'another network'}; put the two that belong together there"
        ]
    parts = [transformer]
    try:
        with torch.device("meta"):
            vae = MagiVae(read_vae_config(files.vae))
        parts.append(check_part("vae", files.vae, vae.state_dict()))
    except (CheckpointError, ValueError) as error:
        parts.append(check_part("vae", files.vae, {}, str(error)))
    parts.append(check_text_encoder("text encoder", files.t5, files.t5, "T5EncoderModel", config.dit.caption_channels))
    problems = []
    try:
        load_special_tokens(files.special_tokens, config.dit.caption_channels)
    except (CheckpointError, OSError) as error:
        problems.append(str(error))
    distilled = "distilled" if config.dit.distill else "base"
    runtime = config.runtime
    settings = {
        "guidance passes": runtime.cfg_number,
        "steps": runtime.num_steps,
        "pixels": f"{runtime.video_size_h} x {runtime.video_size_w}",
        "noise2clean_kvrange": list(runtime.noise2clean_kvrange) or "all",
        "clean_chunk_kvrange": runtime.clean_chunk_kvrange,
        "caption tokens": config.dit.caption_max_length,
    }
    return Inventory(f"MAGI-1 {described or 'of its own size'}, {distilled}", directory, settings, parts, problems)


def _config(directory: Path) -> MagiConfig:
    """Of config.json, or without one of the release that the weights' headers are of."""
    path = directory / "config.json"
    if not path.is_file():
        for distill in (True, False):
            weights = directory / WEIGHTS_FOLDERS[distill][0]
            found = network_of(read_headers(weights)) if weights.is_dir() else None
            if found is not None:
                return RELEASES[found, distill]
    return MagiConfig.from_json(path)
