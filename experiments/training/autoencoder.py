"""Stages 1 and 3 of every embedded model: its autoencoder, and its decoder once more when the latents stand."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from eval.scenes import Scene, render, training_scenes
from experiments.training.clips import draw_clips, to_model_range
from experiments.training.session import TrainingSession


class Autoencoder(Protocol):
    """An nn.Module that these stages can train. Shapes: video [N, 3, F, H, W] in [-1, 1], latent [N, C, f, h, w]."""

    encoder: nn.Module
    matrices_in: tuple[str, ...]  # prefixes of the parameters whose matrices Muon takes

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Posterior mean."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """The video, not clamped."""
        ...

    def encode_clip(self, video: Tensor) -> Tensor:
        """One clip of any length as at inference: [3, F, H, W] -> [C, f, h, w]."""
        ...

    def decode_clip(self, latent: Tensor) -> Tensor:
        """The same backwards."""
        ...


def load_autoencoder(make: Callable[[], Autoencoder], checkpoint: Path) -> Autoencoder:
    """What a stage has left, for use."""
    vae = make()
    vae.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return vae.eval()


def train_vae(make: Callable[[], Autoencoder], recipe: dict, directory: Path) -> None:
    """Train on random clips and leave ``vae.pt`` in ``directory``. Runs in every worker.

    ``recipe["phases"]`` follow one another under one learning rate schedule, each of ``num_steps`` on
    ``clips_per_process`` clips of ``num_frames``: single frames show many scenes for the work of a few clips, and only
    clips as long as the memory of a causal network keep its colours from drifting in videos longer than they are.
    """
    torch.manual_seed(recipe["seed"])
    vae = make()
    phases = recipe["phases"]
    num_steps = sum(phase["num_steps"] for phase in phases)
    session = TrainingSession(directory, "vae", vae, vae.matrices_in, {**recipe, "num_steps": num_steps})
    scenes = training_scenes(session.choice)
    ends = list(accumulate(phase["num_steps"] for phase in phases))
    while not session.finished:
        phase = phases[bisect_right(ends, session.optimiser.step_count)]
        video = draw_clips(session, scenes, phase["num_frames"], phase["clips_per_process"])
        mean, log_variance = vae.moments(video)
        noise = torch.randn(mean.shape, generator=session.generator)
        reconstruction = vae.decode(mean + torch.exp(0.5 * log_variance) * noise)
        mse = (reconstruction - video).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        session.optimiser.step(mse + recipe["kl_weight"] * kl)
        psnr = -10 * torch.log10(mse.detach() / 4).item()
        session.after_step(50, psnr=psnr, kl=kl.item(), latent_std=mean.detach().std().item())


def polish_decoder(make: Callable[[], Autoencoder], recipe: dict, directory: Path) -> None:
    """Train the decoder further on the encoder's means, with the encoder frozen so that latents stay.

    Leaves ``decoder.pt`` (the whole autoencoder) in ``directory``. A little latent noise stands for the transformer's
    errors.
    """
    torch.manual_seed(recipe["seed"])
    vae = load_autoencoder(make, directory / "vae.pt").train()
    vae.encoder.requires_grad_(False)
    session = TrainingSession(directory, "decoder", vae, vae.matrices_in, recipe)
    scenes = training_scenes(session.choice)
    while not session.finished:
        video = draw_clips(session, scenes, recipe["num_frames"], recipe["clips_per_process"])
        with torch.no_grad():
            latent = vae.encode(video)
            latent = latent + recipe["latent_noise"] * torch.randn(latent.shape, generator=session.generator)
        mse = (vae.decode(latent) - video).square().mean()
        session.optimiser.step(mse)
        session.after_step(50, psnr=-10 * torch.log10(mse.detach() / 4).item())


@torch.inference_mode()
def round_trip_psnr(vae: Autoencoder, scenes: list[Scene], num_frames: int, seed: int = 0) -> list[float]:
    """PSNR in dB of encode-decode for one clip of each scene, on 8-bit frames."""
    generator = torch.Generator().manual_seed(seed)
    figures = []
    for scene in scenes:
        frames = render(scene, num_frames, generator)
        decoded = vae.decode_clip(vae.encode_clip(to_model_range(frames))).transpose(0, 1)
        decoded = (decoded * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
        mse = (decoded.double() - frames.double()).square().mean()
        figures.append(10 * torch.log10(255.0**2 / mse).item())
    return figures
