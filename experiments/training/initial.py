"""Start from a finished checkpoint instead of from nothing: its autoencoder is kept, its transformer trained on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import SkyReelsV2Transformer3DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config

from eval.atomic import atomic_path
from experiments.training.captions import build_tokenizer
from experiments.training.magi_dit import TextAndDit
from experiments.training.skyreels_dit import TextAndTransformer
from experiments.training.skyreels_vae import WanAutoencoder
from experiments.training.wan_dit import TextAndWan
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.vae import MagiVae, VaeConfig


def start_magi(checkpoint: Path, recipe: dict, directory: Path) -> None:
    """Put the weights of a checkpoint that ``export_magi`` wrote into ``directory``, where the stages look for theirs.

    Does nothing where a transformer is being trained already. Raises FileNotFoundError for a file that is not there and
    RuntimeError for weights of other sizes than the recipe's.
    """
    if (directory / "dit.pt").exists():
        return
    vae = MagiVae(VaeConfig(**recipe["vae"]["config"]))
    vae.load_state_dict(_floats(checkpoint / "vae" / "diffusion_pytorch_model.safetensors"))
    model = TextAndDit(
        DitConfig(**recipe["dit"]["config"]), T5Config(**recipe["dit"]["t5"]), recipe["dit"]["recipe"]["seed"]
    )
    folder = "inference_weight.distill" if recipe["dit"]["config"]["distill"] else "inference_weight"
    model.dit.load_state_dict(_floats(checkpoint / folder / "model.safetensors"))
    special = _floats(checkpoint / "special_tokens.safetensors")
    model.special_tokens.copy_(torch.cat([special[name] for name in model.special_token_names]))
    _load_text_encoder(model.t5, checkpoint / "t5", checkpoint / "t5" / "tokenizer.json")
    _put(directory, **_autoencoder(vae, recipe), dit=model, teacher=model)


def start_skyreels(checkpoint: Path, recipe: dict, directory: Path) -> None:
    """The same of a checkpoint that ``export_skyreels`` or ``export_wan`` wrote: causal Wan's network knows no frame
    rate, and goes on as if it had been that of either."""
    if (directory / "dit.pt").exists():
        return
    model = TextAndTransformer(recipe["dit"]["transformer"], recipe["dit"]["text"])
    weights = _transformer(checkpoint)
    if not any(name.startswith("fps_") for name in weights):
        with torch.no_grad():
            model.transformer.fps_embedding.weight[0] = model.transformer.fps_embedding.weight[1]
        own = model.transformer.state_dict().items()
        weights |= {name: each for name, each in own if name.startswith("fps_")}
        weights["condition_embedder.time_proj.bias"] -= _rate(model.transformer)
    model.transformer.load_state_dict(weights)
    _load_text_encoder(model.text_encoder, checkpoint / "text_encoder", checkpoint / "tokenizer" / "tokenizer.json")
    _put(directory, **_autoencoder(_wan_autoencoder(checkpoint, recipe), recipe), dit=model)


def start_wan(checkpoint: Path, recipe: dict, directory: Path) -> None:
    """The same for causal Wan, of a checkpoint of either: what SkyReels-V2 adds for one frame rate becomes part of a
    bias."""
    if (directory / "dit.pt").exists():
        return
    model = TextAndWan(recipe["dit"]["transformer"], recipe["dit"]["text"])
    weights = _transformer(checkpoint)
    if any(name.startswith("fps_") for name in weights):
        source = SkyReelsV2Transformer3DModel.from_pretrained(checkpoint / "transformer").float()
        weights["condition_embedder.time_proj.bias"] += _rate(source)
    model.transformer.load_state_dict({name: each for name, each in weights.items() if not name.startswith("fps_")})
    _load_text_encoder(model.text_encoder, checkpoint / "text_encoder", checkpoint / "tokenizer" / "tokenizer.json")
    vae = _wan_autoencoder(checkpoint, recipe)
    _put(directory, vae=vae, decoder=vae, dit=model)


def _transformer(checkpoint: Path) -> dict[str, Tensor]:
    return _floats(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")


def _wan_autoencoder(checkpoint: Path, recipe: dict) -> WanAutoencoder:
    vae = WanAutoencoder(**recipe["vae"]["config"])
    vae.vae.load_state_dict(_floats(checkpoint / "vae" / "diffusion_pytorch_model.safetensors"))
    return vae


@torch.no_grad()
def _rate(transformer: SkyReelsV2Transformer3DModel) -> Tensor:
    """What is added to each modulation for the second frame rate."""
    return transformer.fps_projection(transformer.fps_embedding.weight[1])


def _load_text_encoder(encoder: nn.Module, source: Path, tokenizer: Path) -> None:
    """Weights of ``source``; words of the grammar may have moved, come or gone since its ``tokenizer`` was written."""
    weights = _floats(source / "model.safetensors")
    words = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    before, table = weights["shared.weight"], weights["shared.weight"].clone()
    for word, row in build_tokenizer().get_vocab().items():
        if word in words:
            table[row] = before[words[word]]
    missing, unexpected = encoder.load_state_dict(weights | {"shared.weight": table}, strict=False)
    if unexpected or set(missing) - {"encoder.embed_tokens.weight"}:  # one table under two names
        raise RuntimeError(f"{source} does not fit the recipe's text encoder: {[*missing, *unexpected]}")


def _autoencoder(vae: nn.Module, recipe: dict) -> dict[str, nn.Module]:
    """What the autoencoder starts from, and what stands for its finished decoder where it is not trained on."""
    return {"vae": vae} if recipe["vae"]["train_on"] else {"vae": vae, "decoder": vae}


def _put(directory: Path, **stages: nn.Module) -> None:
    """Weights alone, as the start of stages."""
    for name, weights in stages.items():
        with atomic_path(directory / f"{name}.pt") as temporary:
            torch.save({"model": weights.state_dict()}, temporary)


def _floats(path: Path) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}
