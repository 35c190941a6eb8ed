"""The training clips as latents, encoded once: what the transformers are trained on."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from eval.atomic import atomic_path
from eval.scenes import Scene, render, training_scenes
from experiments.training.autoencoder import Autoencoder, load_autoencoder
from experiments.training.clips import to_model_range
from experiments.training.session import is_main


@torch.no_grad()
def encoded_clips(
    make: Callable[[], Autoencoder], num_frames: int, recipe: dict, directory: Path
) -> tuple[Tensor, list[Scene]]:
    """This worker's share of the training clips as unscaled latents, float16 [clips, C, f, h, w], made once and kept.

    Args:
        make: gives the autoencoder, whose weights are in ``vae.pt``.
        num_frames: of a clip.
        recipe: num_clips (of all workers) and seed count here.
        directory: where the latents are kept.
    """
    rank, num_processes = dist.get_rank(), dist.get_world_size()
    path = directory / f"latents_{rank}_of_{num_processes}.pt"
    scenes = training_scenes(random.Random(recipe["seed"]))
    chosen = list(islice(scenes, rank, recipe["num_clips"], num_processes))
    if not path.exists():
        vae = load_autoencoder(make, directory / "vae.pt")
        generator = torch.Generator().manual_seed(recipe["seed"] + rank)
        latents = []
        for index, scene in enumerate(chosen):
            latents.append(vae.encode_clip(to_model_range(render(scene, num_frames, generator))).half())
            if is_main() and index % 200 == 0:
                print("encoding clips", index, "of", len(chosen), flush=True)
        with atomic_path(path) as temporary:
            torch.save(torch.stack(latents), temporary)
    return torch.load(path, weights_only=True), chosen
