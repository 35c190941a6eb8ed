"""(a) What the device alone can do: products, copies, attention by kernel, passes over tokens, a tile of MAGI-1's VAE.

Shapes are those of the models at the paper's setting. The first call of an attention kernel on a shape is told apart
from the others: some build a plan then, for other strides too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.latency import Spread
from experiments.benchmarks.gpu.subject import RUNS, timed, wait
from experiments.job.errors import explain
from flowcache.kernels import AUTO, attention_kernel
from flowcache.models.magi.attention import rotate
from flowcache.models.magi.vae import MagiVae, VaeConfig
from flowcache.models.random_weights import fill_random

CEILING_RUNS = 30
GROUPS, SHARED, CHANNELS = 8, 3, 128  # MAGI-1's key-value heads, the query heads of each, and their channels
BACKENDS = (AUTO, "cudnn", "flash", "efficient")


@dataclass(frozen=True)
class MicroSizes:
    """Of what is timed. ``tokens`` are of one chunk of MAGI-1; ``products`` are rows, columns and summed-over numbers.

    ``contexts`` are the chunks attended to.
    """

    square: int
    copied_bytes: int
    tokens: int
    contexts: tuple[int, ...]
    products: dict[str, tuple[int, int, int]]
    vae: VaeConfig
    vae_tile: tuple[int, int, int]


PAPER = MicroSizes(
    square=8192,
    copied_bytes=4 * 2**30,
    tokens=12150,
    contexts=(1, 2, 5, 10),
    products={
        "MAGI-1 MLP, up": (12150, 12288, 3072),
        "MAGI-1 MLP, down": (12150, 3072, 12288),
        "MAGI-1 query": (12150, 3072, 3072),
        "MAGI-1 key": (12150, 1024, 3072),
        "SkyReels-V2 MLP, up": (10200, 8960, 1536),
        "SkyReels-V2 query": (10200, 1536, 1536),
    },
    vae=VaeConfig(),
    vae_tile=(3, 32, 32),
)
TINY = MicroSizes(
    square=64,
    copied_bytes=2**16,
    tokens=96,
    contexts=(1, 2),
    products={"a small one": (64, 32, 16)},
    vae=VaeConfig(embed_dim=256, depth=2, num_heads=4),
    vae_tile=(3, 4, 4),
)


@torch.inference_mode()
def micro(device: str, sizes: MicroSizes) -> dict[str, Any]:
    """The two ceilings, TFLOP/s of a square bfloat16 product of normal numbers and GB/s of a copy, bytes read and
    written counted; and every other part, or why it could not be run: one must not cost the others."""
    parts = {"products": _products, "attention": _attention, "masked": _masked, "passes": _passes, "vae_tile": _vae}
    found = _ceilings(device, sizes)
    for name, part in parts.items():
        try:
            found[name] = part(device, sizes)
        except Exception as error:
            found[name] = {"refused": explain(error)}
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
    return {**found, "runs": RUNS}


def _ceilings(device: str, sizes: MicroSizes) -> dict[str, Any]:
    left, right = (_normal(device, sizes.square, sizes.square) for _ in range(2))
    product = timed(lambda: left @ right, device, CEILING_RUNS)
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, CEILING_RUNS)
    return {
        "matmul_size": sizes.square,
        "matmul_tflops": 2 * sizes.square**3 / product.median / 1e12,
        "matmul_s": asdict(product),
        "copy_bytes": sizes.copied_bytes,
        "copy_gb_per_s": 2 * sizes.copied_bytes / copy.median / 1e9,
        "copy_s": asdict(copy),
    }


def _products(device: str, sizes: MicroSizes) -> list[dict[str, Any]]:
    """Of bfloat16 numbers, as the models' linear layers."""
    found = []
    for name, (rows, columns, inner) in sizes.products.items():
        tokens, weight = _normal(device, rows, inner), _normal(device, columns, inner)
        spread = timed(lambda tokens=tokens, weight=weight: F.linear(tokens, weight), device)
        found.append({"product": name, **_rate(spread, 2 * rows * columns * inner)})
    return found


def _attention(device: str, sizes: MicroSizes) -> list[dict[str, Any]]:
    """Of a chunk's folded queries to chunks of keys, by kernel: first calls too, also with a larger pack's strides."""
    found, length = [], SHARED * sizes.tokens
    pack = _normal(device, 1, GROUPS, 2 * length, CHANNELS)
    for backend in BACKENDS:
        try:
            for context in sizes.contexts:
                key, value = (_normal(device, 1, GROUPS, context * sizes.tokens, CHANNELS) for _ in range(2))
                case: dict[str, Any] = {"kernel": backend, "context": context}
                for name, query in {"first": pack[:, :, :length].contiguous(), "strided": pack[:, :, :length]}.items():
                    with attention_kernel(backend):
                        case[f"{name}_call_s"] = _once(lambda q=query, k=key, v=value: _attend(q, k, v), device)
                        spread = timed(lambda q=query, k=key, v=value: _attend(q, k, v), device)
                    if name == "first":
                        case |= _rate(spread, 4 * GROUPS * length * context * sizes.tokens * CHANNELS)
                found.append(case)
        except (RuntimeError, ValueError) as error:
            found.append({"kernel": backend, "refused": explain(error)})
    return found


def _masked(device: str, sizes: MicroSizes) -> dict[str, Any]:
    """Two chunks of keys of which a mask leaves out the first sixth, against the shorter view without them."""
    query = _normal(device, 1, GROUPS, SHARED * sizes.tokens, CHANNELS)
    key, value = (_normal(device, 1, GROUPS, 2 * sizes.tokens, CHANNELS) for _ in range(2))
    left_out = sizes.tokens // 3
    mask = torch.ones(1, GROUPS, 1, 2 * sizes.tokens, dtype=torch.bool, device=device)
    mask[..., :left_out] = False
    shorter = key[:, :, left_out:], value[:, :, left_out:]
    with attention_kernel(AUTO):
        masked = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        difference = (masked - _attend(query, *shorter)).abs().max().item()
        masked_s = timed(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask), device)
        view_s = timed(lambda: _attend(query, *shorter), device)
    return {"masked_s": asdict(masked_s), "view_s": asdict(view_s), "largest_difference": difference}


def _passes(device: str, sizes: MicroSizes) -> list[dict[str, Any]]:
    """GB/s, read and written, of what runs beside the products, over the float32 queries of four chunks."""
    tokens, heads = 4 * sizes.tokens, GROUPS * SHARED
    x = _normal(device, 1, tokens, heads, CHANNELS).float()
    weight, bias = torch.ones(CHANNELS, device=device), torch.zeros(CHANNELS, device=device)
    rope = tuple(_normal(device, tokens, 1, CHANNELS).float() for _ in range(2))
    passes: dict[str, Callable[[], Tensor]] = {
        "sum": lambda: x + x,
        "to bfloat16": lambda: x.bfloat16().float(),
        "norm of a head": lambda: F.layer_norm(x, (CHANNELS,), weight, bias),
        "norm of a token": lambda: F.layer_norm(x.flatten(2), (heads * CHANNELS,)),
        "rotary": lambda: rotate(x, rope),
    }
    found = []
    for name, call in passes.items():
        spread = timed(call, device)
        found.append({"pass": name, "seconds": asdict(spread), "gb_per_s": 2 * x.nbytes / spread.median / 1e9})
    return found


def _vae(device: str, sizes: MicroSizes) -> dict[str, Any]:
    """Decoding one tile of random latents by MAGI-1's VAE in float32 and in bfloat16, and how far the two are apart."""
    with torch.device("meta"):
        vae = MagiVae(sizes.vae)
    fill_random(vae, device, 0)
    latent = _normal(device, 1, sizes.vae.z_chans, *sizes.vae_tile).float()
    exact = vae.float().decode(latent)
    float32_s = timed(lambda: vae.decode(latent), device)
    vae.bfloat16()
    rounded, low = vae.decode(latent.bfloat16()), latent.bfloat16()
    bfloat16_s = timed(lambda: vae.decode(low), device)
    difference = ((rounded.float() - exact).norm() / exact.norm()).item()
    return {"float32_s": asdict(float32_s), "bfloat16_s": asdict(bfloat16_s), "relative_difference": difference}


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _normal(device: str, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _rate(spread: Spread, flops: int) -> dict[str, Any]:
    return {"seconds": asdict(spread), "tflops_per_s": flops / spread.median / 1e12}


def _once(call: Callable[[], object], device: str) -> float:
    """Seconds of the very first call."""
    started = wait(device)
    call()
    return wait(device) - started
