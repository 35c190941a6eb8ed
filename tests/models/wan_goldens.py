"""The official numbers in tests/goldens/wan, the tiny network behind them, and generations that run on it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from flowcache.method import Method
from flowcache.models.wan.config import Sampling
from flowcache.models.wan.generation import WanGeneration
from flowcache.models.wan.network import WanNetwork
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests import golden_files

CHANNELS, ROWS, COLUMNS = 16, 8, 6  # latent
TOKENS = 12  # a latent frame's


def manifest(name: str) -> dict[str, Any]:
    return golden_files.manifest(f"wan/{name}")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a golden file, in float32; not to be written to."""
    return {key: value.float() for key, value in golden_files.tensors(f"wan/{name}").items()}


def latents(tensor: Tensor) -> Tensor:
    """[1, F, C, h, w], as in the goldens -> [1, C, F, h, w], as networks take them; and the other way round."""
    return tensor.transpose(1, 2)


def config() -> dict[str, Any]:
    """Of the golden network, under diffusers' names."""
    own = manifest("forward")["config"]
    return {
        "patch_size": tuple(own["patch_size"]),
        "num_attention_heads": own["num_heads"],
        "attention_head_dim": own["head_dim"],
        "in_channels": own["in_dim"],
        "out_channels": own["out_dim"],
        "text_dim": own["text_dim"],
        "freq_dim": own["freq_dim"],
        "ffn_dim": own["ffn_dim"],
        "num_layers": own["num_layers"],
        "eps": own["eps"],
    }


def weights(adapter: bool = False) -> dict[str, Tensor]:
    """Of the golden network, under diffusers' names; with the adapter merged in."""
    own = {name.removeprefix("model."): value for name, value in tensors("weights").items()}
    if adapter:
        facts, pairs = manifest("forward")["lora"], tensors("lora")
        for name in [name for name in pairs if name.endswith("lora_A.weight")]:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = pairs[name.replace("lora_A", "lora_B")]
            own[f"{layer}.weight"] = own[f"{layer}.weight"] + facts["alpha"] / facts["rank"] * (up @ pairs[name])
    names = manifest("mapping")["transformer"]
    return {names[name]: value for name, value in own.items()}


@cache
def golden_network(adapter: bool = False) -> WanNetwork:
    model = WanTransformer3DModel(**config())
    model.load_state_dict(weights(adapter), strict=True)
    return WanNetwork(model.eval().requires_grad_(False))


def golden_sampling(variant: str) -> Sampling:
    """The settings of a recorded run."""
    run = manifest("sampling")["variants"][variant]
    rolling = variant.startswith("rf_")
    return Sampling(
        steps=run["steps"],
        first_steps=run.get("first_block_steps"),
        warp_steps=run.get("warp", True),
        shift=run.get("shift", 5.0),
        height=8 * ROWS,
        width=8 * COLUMNS,
        block_frames=run["block"],
        first_frame_alone=run.get("independent_first_frame", False),
        window_frames=21 if rolling else None if run["window"] < 0 else run["window"],
        sink_frames=3 if rolling else run["sink"],
        relative_rope=run.get("relative_rope", False),
        renew_sink=not run.get("global_sink", True),
        rolling=rolling,
        context_noise=run.get("context_noise", 0),
    )


def golden_generation(
    variant: str, method: Method, prompts: tuple[str, ...] | None = None, **changes: Any
) -> WanGeneration:
    """A generation with the inputs and settings of a recorded run."""
    run, given = manifest("sampling")["variants"][variant], tensors("sampling")
    sampling = golden_sampling(variant).replaced(changes)
    frames, prefix = run["frames"], run["prefix_frames"]
    return WanGeneration(
        golden_network(),
        sampling,
        method,
        [given[f"in.{prompt}"] for prompt in prompts or run["prompts"]],
        latents(given["in.noise"][:, :frames]),
        given["in.renoise"][:, :, :frames].transpose(2, 3),
        latents(given["in.clean"][:, :prefix]) if prefix else None,
        prompt_starts=run.get("switch_frames", ()),
    )


def small_generation(
    method: Method,
    num_frames: int = 12,
    prefix_frames: int = 0,
    prompt_starts: tuple[int, ...] = (),
    seed: int = 0,
    network: WanNetwork | None = None,
    **settings: Any,
) -> WanGeneration:
    """A generation of 4 x 4 latents, four tokens a latent frame, by default on the golden network; ``num_frames`` are
    latent ones, prefix included."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    sampling = Sampling(**{"height": 32, "width": 32} | settings)
    shape = (1, CHANNELS, num_frames - prefix_frames, 4, 4)
    fresh = sampling.most_steps - 1
    return WanGeneration(
        golden_network() if network is None else network,
        sampling,
        method,
        [draw(1, 10, 24) for _ in range(1 + len(prompt_starts))],
        draw(*shape),
        draw(fresh, *shape) if fresh else None,
        draw(1, CHANNELS, prefix_frames, 4, 4) if prefix_frames else None,
        prompt_starts,
        draw(1, 10, 24) if sampling.guidance_scale > 1 else None,
    )


def latents_of(generation: WanGeneration, trace: Trace | None = None) -> Tensor:
    """Run a generation to its end: the generated latents, [C, f, h, w]."""
    return torch.cat([latent for _, latent in sample(generation, trace)], dim=1)
