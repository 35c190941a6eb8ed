"""Write trained weights as a checkpoint directory in the official layout and key names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config

from eval.atomic import atomic_path
from experiments.training.magi_dit import TextAndDit, build_tokenizer
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.vae import MagiVae, VaeConfig


def export_magi(recipe: dict, directory: Path, destination: Path) -> None:
    """Gather the stages' results from ``directory`` into a checkpoint that ``Magi.from_pretrained`` loads.

    Weights are stored in float16: half the size, and finer than the bfloat16 of the official checkpoints.
    """
    vae = MagiVae(VaeConfig(**recipe["vae"]["config"]))
    vae.load_state_dict(torch.load(directory / "decoder.pt", weights_only=True)["model"])
    model = TextAndDit(
        DitConfig(**recipe["dit"]["config"]), T5Config(**recipe["dit"]["t5"]), recipe["dit"]["recipe"]["seed"]
    )
    model.load_state_dict(torch.load(directory / "dit.pt", weights_only=True)["model"])
    scale_factor = json.loads((directory / "scale_factor.json").read_text())

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


def _write_json(path: Path, document: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(document, indent=2) + "\n")


def _write_weights(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({name: value.half().contiguous() for name, value in state.items()}, temporary)
