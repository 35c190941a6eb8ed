"""The official FlowCache code, imported from a checkout; what it needs and does not find is replaced by stand-ins.

Attention becomes torch's own and fused kernels plain operations. The parts for several processes, text and VAE, which a
row does not reach, are left out. Nothing in the checkout is changed, and nothing of it stays importable.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.job.errors import BadInput

HOW_TO = (
    "`git clone https://github.com/mikeallen39/FlowCache`, `pip install einops`, and give official=FlowCache, the "
    "clone's path"
)
FOLDERS = {"magi": "FlowCache4MAGI-1", "skyreels": "FlowCache4SkyReels-V2"}


def check_checkout(checkout: str | Path) -> None:
    """Raises BadInput where the official code cannot be imported."""
    missing = [folder for folder in FOLDERS.values() if not (Path(checkout) / folder).is_dir()]
    if missing or importlib.util.find_spec("einops") is None:
        lacks = f"has no folder {missing[0]}" if missing else "needs the package einops"
        raise BadInput(f"official={checkout} {lacks}; {HOW_TO}")


def import_official(checkout: str | Path, model: str, names: Sequence[str]) -> tuple[list[ModuleType], list[str]]:
    """Modules of a model's part of the checkout, and the packages that stand-ins replace in them."""
    folder = (Path(checkout) / FOLDERS[model]).resolve()
    replaced = [name for name in PACKAGES[model] if importlib.util.find_spec(name) is None]
    contents = {name: content for package in replaced for name, content in STAND_INS[package].items()}
    modules = {name: _module(name, content, folder) for name, content in {**contents, **PARTS[model]}.items()}
    own = next(iter(PARTS[model])).partition(".")[0]
    try:
        sys.modules.update(modules)
        with mock.patch.object(sys, "path", [str(folder), *sys.path]):
            for parent, _, child in (name.rpartition(".") for name in modules):
                if parent:
                    setattr(importlib.import_module(parent), child, modules[f"{parent}.{child}"])
            found = [importlib.import_module(name) for name in names]
            if "triton" in replaced:
                sys.modules["inference.model.dit.dit_module"].range_mod_triton = gate
    finally:
        for name in [name for name in sys.modules if name in modules or name.partition(".")[0] == own]:
            del sys.modules[name]
    return found, replaced


def _module(name: str, content: dict[str, Any], folder: Path) -> ModuleType:
    module = ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), [str(folder.joinpath(*name.split(".")))]
    module.__dict__.update(content)
    return module


def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """flash_attn_func: [B, L, heads, E]; several query heads may share a key's."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """flash_attn_varlen_func of a single sequence, which is all that one chunk at a time is: [L, heads, E]."""
    if len(options["cu_seqlens_q"]) != 2:
        raise ValueError("this stand-in takes one sequence at a time; install flash-attn for more")
    return attention(q[None], k[None], v[None])[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """apply_rotary_emb: the first 2 R channels of x [B, L, heads, E], in halves, by cos and sin [L, R]."""
    half = cos.shape[1]
    first, second, rest = x.split([half, half, x.shape[3] - 2 * half], dim=3)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=3).to(x.dtype)


def silu_and_mul(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return F.silu(first) * second


def gate(x: Tensor, of_token: Tensor, gates: Tensor) -> Tensor:
    """range_mod_triton: x [L, B, D] times the gate of each token, gates [B, chunks, D] by of_token [L, B]."""
    return x * gates.flatten(0, 1)[of_token]


# By package, its modules and what is taken from them.
STAND_INS: dict[str, dict[str, dict[str, Any]]] = {
    "flash_attn": {
        "flash_attn": {"flash_attn_varlen_func": packed_attention},
        "flash_attn.flash_attn_interface": {"flash_attn_func": attention},
        "flash_attn.layers": {},
        "flash_attn.layers.rotary": {"apply_rotary_emb": rotate},
    },
    "flashinfer": {
        "flashinfer": {"activation": SimpleNamespace(silu_and_mul=silu_and_mul)},
        "flashinfer.gemm": {"bmm_fp8": None},  # of quantized weights
    },
    "triton": {"triton": {"jit": lambda function: function}, "triton.language": {"constexpr": int}},
}
PACKAGES = {"magi": ("flash_attn", "flashinfer", "triton"), "skyreels": ("flash_attn",)}
# The official code's own modules that a row does not reach, or whose imports it does not; for one process.
_PARALLEL = {name: lambda **_: 0 for name in ("get_pp_rank", "get_cp_rank")}
_PARALLEL |= {name: lambda **_: 1 for name in ("get_tp_world_size", "get_pp_world_size", "get_cp_world_size")}
_PARALLEL |= {name: lambda **_: True for name in ("is_pipeline_first_stage", "is_pipeline_last_stage")}
_PROMPTS = ("get_negative_special_token_keys", "get_special_token_keys", "pad_special_token")
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "magi": {
        "inference.infra.distributed": {},
        "inference.infra.distributed.parallel_state": _PARALLEL,
        "inference.infra.checkpoint": {"load_checkpoint": None},
        "inference.pipeline": {"MagiPipeline": None},
        "inference.pipeline.prompt_process": dict.fromkeys(_PROMPTS),
    },
    "skyreels": {"skyreels_v2_infer": {}, "skyreels_v2_infer.modules": {}},
}
