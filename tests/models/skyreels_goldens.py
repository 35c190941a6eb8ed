"""The official numbers in tests/goldens/skyreels, the tiny network behind them, and generations that run on it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor

from flowcache.method import Method
from flowcache.models.skyreels.checkpoint import diffusers_config, diffusers_name
from flowcache.models.skyreels.config import Sampling
from flowcache.models.skyreels.generation import SkyReelsGeneration
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.unipc import noise_levels
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests import golden_files

CHANNELS = 16


def manifest(name: str) -> dict[str, Any]:
    return golden_files.manifest(f"skyreels/{name}")


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a golden file; not to be written to."""
    return golden_files.tensors(f"skyreels/{name}")


def transformer(**changes: Any) -> SkyReelsV2Transformer3DModel:
    """diffusers' own, with the golden weights unless ``changes`` make it another."""
    config = diffusers_config(manifest("forward")["config"]) | changes
    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(**config)
    if not changes:
        weights = {diffusers_name(name): value for name, value in tensors("weights_upstream").items()}
        model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


@cache
def golden_network() -> SkyReelsNetwork:
    return SkyReelsNetwork(transformer())


def golden_generation(variant: str, method: Method, **settings: Any) -> SkyReelsGeneration:
    """A generation with the inputs and settings of the recorded two-window runs."""
    run, given = manifest("sampling")["run"], tensors("sampling")
    sampling = Sampling(
        num_steps=run["steps"],
        height=8 * run["h"],
        width=8 * run["w"],
        shift=run["shift"],
        guidance_scale=run["cfg"],
        ar_step=run["ar_step"],
        causal_block_size=run["block"],
        base_num_frames=run["base_num_frames"],
        overlap_history=run["overlap_history"],
        **{"addnoise_condition": 0, "corrector": "published"} | settings,
    )
    schedule = sampling.schedule(run["num_frames"], noise_levels(run["steps"], run["shift"])[1], 0, False)
    captions = [given["context"], given["context_uncond"]]
    noise = [given["noise.w0"][None], given["noise.w1"][None]]
    condition_noise = [None, given.get(f"{variant}.condition_noise")]
    return SkyReelsGeneration(golden_network(), sampling, schedule, method, captions, noise, None, condition_noise)


# Two windows of up to three chunks of two latent frames, four tokens a frame.
SMALL = {
    "num_steps": 6,
    "height": 32,
    "width": 32,
    "ar_step": 2,
    "causal_block_size": 2,
    "base_num_frames": 21,
    "overlap_history": 5,
    "addnoise_condition": 0,
}


def small_generation(
    method: Method,
    num_chunks: int = 5,
    given_latents: int = 0,
    seed: int = 0,
    network: SkyReelsNetwork | None = None,
    caption_tokens: int = 8,
    **settings: Any,
) -> SkyReelsGeneration:
    """A generation of eight tokens a chunk (by default) on the golden network."""
    sampling = Sampling(**SMALL | settings)
    block, random = sampling.causal_block_size, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def latent(num_latents: int) -> Tensor | None:
        return draw(1, CHANNELS, num_latents, 4, 4) if num_latents else None

    times = noise_levels(sampling.num_steps, sampling.shift)[1]
    schedule = sampling.schedule(sampling.frames_of(num_chunks), times, given_latents // block, False)
    captions = [draw(1, caption_tokens, 32) for _ in range(2 if sampling.guidance_scale > 1 else 1)]
    noise = [latent(window.num_chunks * block) for window in schedule.windows]
    given = latent(given_latents)
    condition_noise = [latent(given_latents), *(latent(w.prefix_chunks * block) for w in schedule.windows[1:])]
    network = golden_network() if network is None else network
    return SkyReelsGeneration(network, sampling, schedule, method, captions, noise, given, condition_noise)


def latents_of(generation: SkyReelsGeneration, trace: Trace | None = None) -> Tensor:
    """Run a generation to its end: the generated latents of all windows, [C, f, h, w]."""
    return torch.cat([latent for _, latent in sample(generation, trace)], dim=1)
