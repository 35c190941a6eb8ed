"""Stage 1: the embedded MAGI-1's autoencoder, trained on random 12-frame tiles, the length it is used at."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from eval.scenes import Scene, render, training_scenes
from experiments.training.optimiser import Optimiser
from experiments.training.session import TrainingSession
from flowcache.models.magi.vae import MagiVae, VaeConfig


def to_model_range(frames: Tensor) -> Tensor:
    """uint8 [F, 3, H, W] -> float32 [3, F, H, W] in [-1, 1]."""
    return frames.transpose(0, 1).float() / 127.5 - 1.0


def train_vae(config: VaeConfig, recipe: dict, directory: Path) -> None:
    """Train and leave ``vae.pt`` in ``directory``. Runs in every worker."""
    rank = dist.get_rank()
    torch.manual_seed(recipe["seed"])
    vae = MagiVae(config)
    optimiser = Optimiser(
        vae,
        muon_in=("encoder.blocks", "decoder.blocks"),
        muon_lr=recipe["muon_lr"],
        adam_lr=recipe["adam_lr"],
        num_steps=recipe["num_steps"],
        decay_fraction=recipe["decay_fraction"],
    )
    session = TrainingSession(directory, "vae", vae, optimiser)
    seed = recipe["seed"] + 1000 * (rank + 1) + optimiser.step_count
    generator, choice = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = training_scenes()
    while not session.finished:
        batch = [
            to_model_range(render(choice.choice(scenes), config.video_length, generator))
            for _ in range(recipe["batch_per_process"])
        ]
        video = torch.stack(batch)
        mean, log_variance = vae.moments(video)
        noise = torch.randn(mean.shape, generator=generator)
        reconstruction = vae.decoder(mean + torch.exp(0.5 * log_variance) * noise)
        mse = (reconstruction - video).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        optimiser.step(mse + recipe["kl_weight"] * kl)
        psnr = -10 * torch.log10(mse.detach() / 4).item()
        session.after_step(50, psnr=psnr, kl=kl.item(), latent_std=mean.detach().std().item())


def polish_decoder(config: VaeConfig, recipe: dict, directory: Path) -> None:
    """Stage 3: train the decoder further on the encoder's means, with the encoder frozen so that latents stay.

    Leaves ``decoder.pt`` (the whole autoencoder) in ``directory``. A little latent noise stands for the transformer's
    errors.
    """
    rank = dist.get_rank()
    torch.manual_seed(recipe["seed"])
    vae = MagiVae(config)
    vae.load_state_dict(torch.load(directory / "vae.pt", weights_only=True)["model"])
    vae.encoder.requires_grad_(False)
    optimiser = Optimiser(
        vae,
        muon_in=("decoder.blocks",),
        muon_lr=recipe["muon_lr"],
        adam_lr=recipe["adam_lr"],
        num_steps=recipe["num_steps"],
        decay_fraction=recipe["decay_fraction"],
    )
    session = TrainingSession(directory, "decoder", vae, optimiser)
    seed = recipe["seed"] + 1000 * (rank + 1) + optimiser.step_count
    generator, choice = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = training_scenes()
    while not session.finished:
        video = torch.stack(
            [
                to_model_range(render(choice.choice(scenes), config.video_length, generator))
                for _ in range(recipe["batch_per_process"])
            ]
        )
        with torch.no_grad():
            latent = vae.encode(video)
            latent = latent + recipe["latent_noise"] * torch.randn(latent.shape, generator=generator)
        mse = (vae.decoder(latent) - video).square().mean()
        optimiser.step(mse)
        session.after_step(50, psnr=-10 * torch.log10(mse.detach() / 4).item())


@torch.no_grad()
def encode_clip(vae: MagiVae, scene: Scene, num_frames: int, generator: torch.Generator) -> Tensor:
    """One clip's latent mean, unscaled float32 [C, f, h, w], encoded tile by tile as at inference."""
    video = to_model_range(render(scene, num_frames, generator))
    tiles = video.unflatten(1, (-1, vae.config.video_length)).transpose(0, 1)
    return vae.encode(tiles).transpose(0, 1).flatten(1, 2)


@torch.no_grad()
def round_trip_psnr(vae: MagiVae, scenes: list[Scene], num_frames: int, seed: int) -> list[float]:
    """PSNR in dB of encode-decode for one clip of each scene, on 8-bit frames."""
    generator = torch.Generator().manual_seed(seed)
    figures = []
    for scene in scenes:
        frames = render(scene, num_frames, generator)
        tiles = to_model_range(frames).unflatten(1, (-1, vae.config.video_length)).transpose(0, 1)
        decoded = vae.decode(vae.encode(tiles)).transpose(1, 2).flatten(0, 1)
        decoded = (decoded * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
        mse = (decoded.double() - frames.double()).square().mean()
        figures.append(10 * torch.log10(255.0**2 / mse).item())
    return figures
