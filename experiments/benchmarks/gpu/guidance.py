"""(b) Two guidance branches as one batch against one after the other, as ours run: whether batching them would pay.

Our forward packs the chunks of one branch and takes no batch, so diffusers' own runs both ways here, uncompiled, on the
same modules. It has no MAGI-1; SkyReels-V2 stands for it, as branches share weights and nothing else in either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.gpu.subject import RUNS, Subject, inputs, timed
from flowcache.kernels import attention_kernel
from flowcache.method import VANILLA
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.text import MAX_TOKENS

GIB = 2**30
TIME = 500  # of all frames; it changes no cost
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # 1.3B: rounding is 6e-7 and 0.01, two captions are 0.17 apart


def branches(subject: Subject, caption_tokens: int = MAX_TOKENS, runs: int = RUNS) -> dict[str, Any]:
    """Seconds and peak memory of two captions' forwards, over the tokens of one chunk and of a whole window.

    All tokens see each other, and a chunk's none before it. Raises RuntimeError where the two ways disagree.
    """
    job = subject.job()
    model = job.load_model()
    generation = model.generation(num_frames=job.num_frames, method=VANILLA, **inputs(job))
    window, chunk_frames = generation.latents, generation.sampling.causal_block_size
    shape, random = (2, caption_tokens, model.network.config.text_dim), torch.Generator().manual_seed(job.seed)
    captions = torch.randn(shape, generator=random).to(job.device)
    parts = {"chunk": window[:, :, :chunk_frames], "window": window}
    cases = [{"part": name, **_compare(model.network, part, captions, runs)} for name, part in parts.items()]
    return {"cases": cases, "runs": runs}


@torch.inference_mode()
def _compare(network: SkyReelsNetwork, latent: Tensor, captions: Tensor, runs: int) -> dict[str, Any]:
    """Latent [1, C, F, h, w], captions [2, L, text channels]; a ratio above 1 is in favour of the batch."""

    def in_turn() -> Tensor:
        return torch.cat([_velocity(network, latent, caption[None]) for caption in captions])

    def batched() -> Tensor:
        return _velocity(network, latent, captions)

    difference = _check_same(in_turn(), batched(), TOLERANCE[network.dtype])
    in_turn_s, in_turn_peak_gib = _timed(in_turn, latent.device, runs)
    batched_s, batched_peak_gib = _timed(batched, latent.device, runs)
    _, patch_rows, patch_columns = network.config.patch_size
    return {
        "tokens": latent[0, 0].numel() // (patch_rows * patch_columns),
        "in_turn_s": in_turn_s,
        "batched_s": batched_s,
        "ratio": in_turn_s["median"] / batched_s["median"],
        "in_turn_peak_memory_gib": in_turn_peak_gib,
        "batched_peak_memory_gib": batched_peak_gib,
        "relative_difference": difference,
    }


def _velocity(network: SkyReelsNetwork, latent: Tensor, captions: Tensor) -> Tensor:
    """Of one latent [1, C, F, h, w] by captions [B, L, text channels]: [B, C, F, h, w]."""
    count = len(captions)
    with attention_kernel(network.attention_backend):
        (velocity,) = network.transformer(
            latent.to(network.dtype).expand(count, -1, -1, -1, -1),
            torch.full((count,), TIME, device=latent.device),
            captions.to(network.dtype),
            fps=[1],
            return_dict=False,
        )
    return velocity


def _check_same(in_turn: Tensor, batched: Tensor, tolerance: float) -> float:
    """The relative difference of two branches' velocities [2, C, F, h, w], which must tell captions apart."""
    difference, apart = _difference(batched, in_turn), _difference(in_turn[:1], in_turn[1:])
    if not difference < tolerance < apart:  # nan fails too
        raise RuntimeError(
            f"batched branches differ from the same in turn by {difference:.1e} and the branches by {apart:.1e}, of "
            f"which the first must lie below {tolerance:g} and the second above"
        )
    return difference


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def _timed(call: Callable[[], object], device: torch.device, runs: int) -> tuple[dict[str, float], float | None]:
    """Seconds, and the GPU's most GiB at once, weights included (None on a CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    spread = timed(call, str(device), runs)
    return asdict(spread), torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None
