"""Stage 1: the embedded MAGI-1's autoencoder, trained on random 12-frame tiles, the length it is used at."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eval.scenes import Scene, render, training_scenes
from experiments.training.session import TrainingSession
from flowcache.models.magi.vae import MagiVae, VaeConfig


def to_model_range(frames: Tensor) -> Tensor:
    """uint8 [F, 3, H, W] -> float32 [3, F, H, W] in [-1, 1]."""
    return frames.transpose(0, 1).float() / 127.5 - 1.0


def train_vae(config: VaeConfig, recipe: dict, directory: Path) -> None:
    """Train and leave ``vae.pt`` in ``directory``. Runs in every worker."""
    torch.manual_seed(recipe["seed"])
    vae = MagiVae(config)
    session = TrainingSession(directory, "vae", vae, ("encoder.blocks", "decoder.blocks"), recipe)
    scenes = training_scenes()
    while not session.finished:
        video = _tiles(session, scenes, config, recipe)
        mean, log_variance = vae.moments(video)
        noise = torch.randn(mean.shape, generator=session.generator)
        reconstruction = vae.decoder(mean + torch.exp(0.5 * log_variance) * noise)
        mse = (reconstruction - video).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        session.optimiser.step(mse + recipe["kl_weight"] * kl)
        psnr = -10 * torch.log10(mse.detach() / 4).item()
        session.after_step(50, psnr=psnr, kl=kl.item(), latent_std=mean.detach().std().item())


def _tiles(session: TrainingSession, scenes: list[Scene], config: VaeConfig, recipe: dict) -> Tensor:
    """A batch of random tiles, float32 [B, 3, video_length, H, W] in [-1, 1]."""
    picks = [session.choice.choice(scenes) for _ in range(recipe["batch_per_process"])]
    return torch.stack([to_model_range(render(scene, config.video_length, session.generator)) for scene in picks])


def polish_decoder(config: VaeConfig, recipe: dict, directory: Path) -> None:
    """Stage 3: train the decoder further on the encoder's means, with the encoder frozen so that latents stay.

    Leaves ``decoder.pt`` (the whole autoencoder) in ``directory``. A little latent noise stands for the transformer's
    errors.
    """
    torch.manual_seed(recipe["seed"])
    vae = MagiVae(config)
    vae.load_state_dict(torch.load(directory / "vae.pt", weights_only=True)["model"])
    vae.encoder.requires_grad_(False)
    session = TrainingSession(directory, "decoder", vae, ("decoder.blocks",), recipe)
    scenes = training_scenes()
    while not session.finished:
        video = _tiles(session, scenes, config, recipe)
        with torch.no_grad():
            latent = vae.encode(video)
            latent = latent + recipe["latent_noise"] * torch.randn(latent.shape, generator=session.generator)
        mse = (vae.decoder(latent) - video).square().mean()
        session.optimiser.step(mse)
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
