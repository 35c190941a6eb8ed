"""Where the parts of a causal Wan lie: as its repositories tell to download them, or as diffusers lays them out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowcache.models.checkpoint import (
    FILE_NAMES,
    INDEX_NAMES,
    CheckpointError,
    around,
    part_files,
    read_json,
    shortened,
)
from flowcache.models.pickled import Choose
from flowcache.models.wan.modules import SAFETENSORS

AVERAGED, PLAIN = "generator_ema", "generator"  # the sets of weights that a published file may hold
SUFFIXES = (".pt", SAFETENSORS)
TRANSFORMERS = ("WanTransformer3DModel", "CausalWanTransformer3DModel")  # what converted folders say they are of
VAE_FILE = "Wan2.1_VAE.pth"
UMT5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
_UMT5_TOKENIZER = "google/umt5-xxl"
_BASES = tuple(
    f"{outer}Wan2.1-T2V-{size}{layout}"
    for outer in ("", "wan_models/")
    for size in ("1.3B", "14B")
    for layout in ("", "-Diffusers")
)
_ADAPTERS = ("lora.pt", "lora.safetensors")
_SETTINGS = ("model_index.json", "sampling.json")


@dataclass(frozen=True)
class Release:
    """Published files of one kind: how their folder and name look, which weights their own command uses, and which
    settings are not the defaults."""

    name: str
    files: str
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict)


# The first whose files fit (the commands of their READMEs: guandeh17/Self-Forcing, NVlabs/LongLive v1.0,
# TencentARC/RollingForcing, thu-ml/Causal-Forcing).
RELEASES = {
    "self_forcing": Release("Self-Forcing", r"/self_forcing", AVERAGED),
    "longlive": Release("LongLive", r"/longlive", PLAIN, {"window_frames": 12, "sink_frames": 3}),
    "rolling_forcing": Release(
        "Rolling Forcing",
        r"/rolling_forcing",
        AVERAGED,
        {"rolling": True, "steps": (1000, 800, 600, 400, 200), "window_frames": 21, "sink_frames": 3},
    ),
    "causal_forcing_framewise": Release("Causal-Forcing, frame by frame", r"framewise", AVERAGED, {"block_frames": 1}),
    "causal_forcing": Release("Causal-Forcing, chunk by chunk", r"chunkwise/", PLAIN),
}


@dataclass(frozen=True)
class WanFiles:
    """Where the parts of a checkpoint lie; whether they are there is not said.

    Attributes:
        transformer: a folder of safetensors, or a file of the published ones.
        lora: an adapter for it, or None.
        vae, text_encoder: folders of diffusers, or files of the original Wan 2.1.
        tokenizer: the folder.
    """

    transformer: Path
    lora: Path | None
    vae: Path
    text_encoder: Path
    tokenizer: Path


def release_of(transformer: Path) -> Release | None:
    """Which published one a file is, by its name and its folder's; None for any other."""
    name = f"{transformer.parent.name}/{transformer.name}"
    return next((release for release in RELEASES.values() if re.search(release.files, name)), None)


def locate(path: str | Path, base: str | Path | None = None, lora: str | Path | None = None) -> WanFiles:
    """The parts of a checkpoint.

    Args:
        path: a published file, or a folder that holds one (and perhaps lora.pt, which is merged into it), or a folder
            ``transformer`` of diffusers, or the files of an original Wan 2.1.
        base: the folder of a Wan 2.1, for VAE, text encoder and tokenizer. By default they are taken from the
            checkpoint's own folder, or from Wan2.1-T2V-1.3B (14B, -Diffusers, in wan_models) there or up to two above.
        lora: an adapter instead of the folder's own.

    Raises CheckpointError where there is no such place, and for a folder of several files.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    if not path.is_dir() and not is_weights_file(path):
        raise CheckpointError(f"no checkpoint directory at {path}; give the path of a downloaded checkpoint")
    if base is not None and not Path(base).is_dir():
        raise CheckpointError(f"no directory at {base}; give the path of a downloaded Wan 2.1, such as {_BASES[0]}")
    if lora is not None and not Path(lora).is_file():
        raise CheckpointError(f"no adapter at {lora}; give the path of a file, such as lora.pt of LongLive")
    homes = (
        [directory, *(home / name for home in around(directory) for name in _BASES)] if base is None else [Path(base)]
    )
    own = next((directory / name for name in _ADAPTERS if (directory / name).is_file()), None)

    def first(*names: str) -> Path:
        return next((place for home in homes for name in names if (place := home / name).exists()), homes[0] / names[0])

    return WanFiles(
        path if path.is_file() else _transformer(path),
        own if lora is None else Path(lora),
        first("vae", VAE_FILE),
        first("text_encoder", UMT5_FILE),
        first("tokenizer", _UMT5_TOKENIZER),
    )


def is_weights_file(path: Path) -> bool:
    """Whether it is a file of a kind that transformers are published in."""
    return path.is_file() and path.suffix in SUFFIXES


def is_wan(path: Path) -> bool:
    """Whether a directory or file looks like a checkpoint of Wan, whole or not."""
    if is_weights_file(path):
        return True
    if not path.is_dir():
        return False
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    try:
        config = read_json(folder / "config.json", "a configuration")
    except FileNotFoundError:
        return folder == path and bool(_published(path))
    except (OSError, CheckpointError):
        return False
    if "inject_sample_info" in config:  # which only SkyReels-V2's has
        return False
    return {"num_heads", "dim"} <= config.keys() or config.get("_class_name") in TRANSFORMERS


def _published(directory: Path) -> list[Path]:
    """Files of a folder that may hold a transformer."""
    found = sorted(path for path in directory.iterdir() if is_weights_file(path) and path.name not in _ADAPTERS)
    return [] if _is_original(directory) else found


def _is_original(directory: Path) -> bool:
    """Whether a folder holds a transformer under the file names of diffusers and of the original Wan 2.1."""
    return any((directory / name).is_file() for name in (*FILE_NAMES, *INDEX_NAMES))


def _transformer(directory: Path) -> Path:
    """Raises CheckpointError for a folder of several transformers, or none."""
    if (directory / "transformer").is_dir():
        return directory / "transformer"
    if _is_original(directory):
        return directory
    found = _published(directory)
    if len(found) > 1:
        raise CheckpointError(
            f"{directory} holds {len(found)} checkpoints ({shortened([path.name for path in found])}); give the path of"
            " one of them"
        )
    if not found:
        raise CheckpointError(
            f"no transformer in {directory}: expected a published file, such as self_forcing_dmd.pt, or a folder "
            "transformer; check the path, or download the checkpoint there"
        )
    return found[0]


def chooser(weights: str | None) -> Choose:
    """What picks a published file's weights.

    Args:
        weights: ``generator_ema`` (averaged) or ``generator``; None takes those of the published command, and for a
            file of none the averaged ones where it holds them.

    It raises CheckpointError for weights that the file lacks, and names those that it holds.
    """

    def choose(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
        held = [name for name, part in content.items() if isinstance(part, Mapping)]
        if not held and weights is None:  # tensors alone
            return content
        release = release_of(path)
        default = release.weights if release else next((name for name in (AVERAGED, PLAIN) if name in held), PLAIN)
        wanted = default if weights is None else weights
        if wanted not in held:
            usable = [name for name in (AVERAGED, PLAIN) if name in held]
            raise CheckpointError(
                f"{path} has no weights {wanted!r}: it holds {', '.join(held) or 'one set without a name'}; "
                + (
                    f"choose weights={usable[0]}"
                    if usable
                    else "leave weights out"
                    if not held
                    else "download it again"
                )
            )
        return content[wanted]

    return choose


def loaded_files(path: Path, base: Path | None = None, lora: Path | None = None) -> dict[str, Path]:
    """What a checkpoint is loaded from, by its name in diffusers' layout, and what says there how it samples.

    Args as of ``locate``. Files that are missing are left out. Raises CheckpointError as ``locate``.
    """
    files = locate(path, base, lora)
    directory = path if path.is_dir() else path.parent
    parts = {"transformer": files.transformer, "lora": files.lora, "vae": files.vae}
    parts |= {"text_encoder": files.text_encoder, "tokenizer": files.tokenizer}
    single = {name: directory / name for name in _SETTINGS if (directory / name).is_file()}
    single |= {f"{name}/{place.name}": place for name, place in parts.items() if place and place.is_file()}
    if files.transformer.is_file() and (config := files.transformer.parent / "config.json").is_file():
        single["transformer/config.json"] = config
    return single | {
        f"{name}/{file.name}": file
        for name, place in parts.items()
        if place and place.is_dir()
        for file in part_files(place)
    }
