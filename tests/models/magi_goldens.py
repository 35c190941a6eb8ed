"""The official numbers in tests/goldens/magi, the tiny network behind them, and generations that run on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flowcache.method import Method
from flowcache.models.magi.attention import CaptionKv
from flowcache.models.magi.config import DitConfig, Runtime
from flowcache.models.magi.generation import MagiGeneration
from flowcache.models.magi.network import MagiDit
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests import golden_files

TOKENS_PER_CHUNK = 72
CHUNK_WIDTH = 6
GUIDANCE_3 = {"cfg_number": 3, "prev_chunk_scales": (1.1,) * 5, "text_scales": (1.2,) * 5}  # mild, for random weights


def manifest(name: str) -> dict[str, Any]:
    """What the golden files' manifest says about one of them."""
    for part in ("dit", "cache", "vae_schedule"):
        entries = golden_files.manifest(f"magi/manifest_{part}")
        for key in (name, f"{name}.safetensors"):
            if key in entries:
                return entries[key]
    raise KeyError(name)


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a golden file; not to be written to."""
    return golden_files.tensors(f"magi/{name.removesuffix('.safetensors')}")


@cache
def golden_dit(variant: str) -> MagiDit:
    """The golden network; variant is {mlp,glu}_{base,distill}."""
    kind, mode = variant.split("_")
    dit = MagiDit(dit_config(gated_linear_unit=kind == "glu", distill=mode == "distill"))
    dit.load_state_dict({name: value.float() for name, value in tensors(f"dit_weights_{kind}").items()}, strict=True)
    return dit.eval().requires_grad_(False)


def dit_config(**changes: Any) -> DitConfig:
    sizes = manifest("_config")
    names = set(DitConfig.__dataclass_fields__) - {"params_dtype"}
    return DitConfig(**{k: v for k, v in sizes.items() if k in names} | changes)


def packed_caption(dit: MagiDit, features: Tensor, mask: Tensor) -> CaptionKv:
    """Features [1, L, K] without the positions that the mask leaves out."""
    return dit.caption_kv(features[:, mask.flatten().bool()])


def null_caption(dit: MagiDit) -> CaptionKv:
    return dit.caption_kv(dit.y_embedder.null_caption_embedding[None])


def golden_runtime(run: str) -> Runtime:
    """The sampling settings of a recorded run."""
    case = manifest(run)
    runtime, engine = case["runtime"], case["engine"]
    shared = (
        "cfg_number",
        "clean_chunk_kvrange",
        "clean_t",
        "num_steps",
        "window_size",
        "video_size_h",
        "video_size_w",
    )
    return Runtime(
        **{name: runtime[name] for name in shared},
        noise2clean_kvrange=tuple(runtime["noise2clean_kvrange"]),
        near_clean_threshold=engine["distill_nearly_clean_chunk_threshold"],
        shortcut_mode=engine["shortcut_mode"],
    )


def golden_generation(run: str, method: Method) -> MagiGeneration:
    """A generation with the inputs and settings of a recorded run."""
    case = manifest(run)
    given = tensors(case.get("inputs", run))
    dit = golden_dit(f"{'glu' if run.endswith('glu') else 'mlp'}_{'distill' if case['engine']['distill'] else 'base'}")
    noise, prefix = given["in.noise"][:1], given.get("in.prefix_latents")
    caption = packed_caption(dit, given["in.caption_embs"][0], given["in.emb_masks"])
    captions = [caption] * (noise.shape[2] // CHUNK_WIDTH)
    prefix = None if prefix is None else prefix[:1]
    return MagiGeneration(dit, golden_runtime(run), method, captions, null_caption(dit), noise, prefix)


def small_generation(
    method: Method,
    num_chunks: int = 3,
    num_steps: int = 8,
    prefix_frames: int = 0,
    seed: int = 0,
    dit: MagiDit | None = None,
    keep_prefix_frames: bool = False,
    vae: torch.nn.Module | None = None,
    **runtime: Any,
) -> MagiGeneration:
    """A generation of 24 tokens a chunk with a caption of its own for every chunk."""
    dit = golden_dit("mlp_base") if dit is None else dit
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    noise = draw(1, 16, num_chunks * CHUNK_WIDTH, 4, 4)
    features, null = [draw(1, 5 + chunk, 32) for chunk in range(num_chunks)], null_caption(dit)
    given = prefix_frames // CHUNK_WIDTH
    captions = [null] * given + [dit.caption_kv(feature) for feature in features[given:]]
    prefix = draw(1, 16, prefix_frames, 4, 4) if prefix_frames else None
    settings = Runtime(num_steps=num_steps, **runtime)
    return MagiGeneration(
        dit,
        settings,
        method,
        captions,
        null,
        noise,
        prefix,
        keep_prefix_frames=keep_prefix_frames,
        vae=vae,
    )


def latents_of(generation: MagiGeneration, trace: Trace | None = None) -> Tensor:
    """Run a generation to its end: its final latents [1, C, f, h, w]."""
    for _ in sample(generation, trace):
        pass
    return generation.latents


def decisions(run: str) -> Sequence[dict[str, Any]]:
    """The recorded decisions of a run with reuse, one entry a row."""
    return manifest(run)["steps"]
