"""Write trained weights as checkpoint directories in the official layouts and key names.

Weights are stored in float16: half the size, and finer than the bfloat16 of the official checkpoints.
"""

from __future__ import annotations

import filecmp
import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline, SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler, WanPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config

from eval.atomic import atomic_path
from experiments.training.autoencoder import load_autoencoder
from experiments.training.captions import build_tokenizer
from experiments.training.magi_dit import TextAndDit
from experiments.training.magi_vae import MagiAutoencoder
from experiments.training.skyreels_dit import TextAndTransformer
from experiments.training.skyreels_vae import WanAutoencoder
from experiments.training.wan_dit import TextAndWan
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.vae import VaeConfig
from flowcache.models.skyreels.config import Sampling
from flowcache.models.wan.config import Sampling as Settings


def export_magi(recipe: dict, directory: Path, destination: Path) -> None:
    """Gather the stages' results from ``directory`` into a checkpoint that ``Magi.from_pretrained`` loads."""
    vae = load_autoencoder(partial(MagiAutoencoder, VaeConfig(**recipe["vae"]["config"])), directory / "decoder.pt")
    model = TextAndDit(
        DitConfig(**recipe["dit"]["config"]), T5Config(**recipe["dit"]["t5"]), recipe["dit"]["recipe"]["seed"]
    )
    model.load_state_dict(torch.load(directory / "dit.pt", weights_only=True)["model"])
    scale_factor = json.loads((directory / "scale_factor.json").read_text(encoding="utf-8"))

    _write_json(destination / "vae" / "config.json", {"_class_name": "ViTVAE", "ddconfig": recipe["vae"]["config"]})
    _write_weights(destination / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())
    dit_config = dict(recipe["dit"]["config"])
    distill = dit_config.pop("distill")
    size = recipe["vae"]["config"]["video_size"]
    _write_json(
        destination / "config.json",
        {
            "model_config": {"model_name": "videodit_ardf", **dit_config, "params_dtype": "torch.float32"},
            "runtime_config": {
                **recipe["runtime"],
                "video_size_h": size,
                "video_size_w": size,
                "scale_factor": scale_factor,
            },
            "engine_config": {
                "distill": distill,
                "distill_nearly_clean_chunk_threshold": 0.3,
                "shortcut_mode": "8,16,16",
            },
        },
    )
    folder = "inference_weight.distill" if distill else "inference_weight"
    _write_weights(destination / folder / "model.safetensors", model.dit.state_dict())
    tokens = {name: token[None] for name, token in zip(model.special_token_names, model.special_tokens, strict=True)}
    _write_weights(destination / "special_tokens.safetensors", tokens)
    model.t5.half().save_pretrained(destination / "t5")
    build_tokenizer().save_pretrained(destination / "t5")


def export_skyreels(recipe: dict, directory: Path, destination: Path) -> None:
    """The same for ``SkyReels.from_pretrained``: the folders of diffusers' pipeline, and ``sampling.json``."""
    model = TextAndTransformer(recipe["dit"]["transformer"], recipe["dit"]["text"])
    sampling = recipe["sampling"]
    shift = Sampling(**sampling).shift
    _export_wan_family(
        SkyReelsV2DiffusionForcingPipeline, model, recipe, directory, "dit", sampling, shift, destination
    )


def export_wan(recipe: dict, directory: Path, weights: str, sampling: dict, destination: Path) -> None:
    """The same for ``Wan.from_pretrained``, of the stage ``weights``, in the folders of diffusers' Wan."""
    model = TextAndWan(recipe["dit"]["transformer"], recipe["dit"]["text"])
    shift = Settings().replaced(sampling).shift
    _export_wan_family(WanPipeline, model, recipe, directory, weights, sampling, shift, destination)


def link_shared_weights(checkpoint: Path, other: Path) -> None:
    """Replace weights of ``checkpoint`` that ``other`` has too, in a file of the same place and content, by relative
    links: what both share is kept once."""
    for original in sorted(other.rglob("*.safetensors")):
        own = checkpoint / original.relative_to(other)
        if own.is_file() and not own.is_symlink() and filecmp.cmp(own, original, shallow=False):
            with atomic_path(own) as temporary:
                temporary.symlink_to(os.path.relpath(original, own.parent))


def _export_wan_family(
    pipeline: type[DiffusionPipeline],
    model: TextAndTransformer | TextAndWan,
    recipe: dict,
    directory: Path,
    weights: str,
    sampling: dict,
    shift: float,
    destination: Path,
) -> None:
    """A model with the weights of a stage, and the autoencoder's, as a pipeline of diffusers."""
    model.load_state_dict(torch.load(directory / f"{weights}.pt", weights_only=True)["model"])
    statistics = json.loads((directory / "latent_statistics.json").read_text(encoding="utf-8"))
    make = partial(WanAutoencoder, **recipe["vae"]["config"], **statistics)
    made = pipeline(
        tokenizer=build_tokenizer(recipe["dit"]["recipe"]["caption_length"]),
        text_encoder=model.text_encoder.half(),
        transformer=model.transformer.half(),
        vae=load_autoencoder(make, directory / "decoder.pt").vae.half(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift),
    )
    _save_pipeline(made, sampling, destination)


def _save_pipeline(pipeline: DiffusionPipeline, sampling: dict, destination: Path) -> None:
    """Its folders, each file whole or not at all, and ``sampling.json``."""
    destination.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=destination, prefix=".partial-") as partial_directory:
        pipeline.save_pretrained(partial_directory)
        for path in sorted(Path(partial_directory).rglob("*")):
            final = destination / path.relative_to(partial_directory)
            if path.is_dir():
                final.mkdir(exist_ok=True)
            else:
                path.replace(final)
    _write_json(destination / "sampling.json", sampling)


def _write_json(path: Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({name: value.half().contiguous() for name, value in state.items()}, temporary)
