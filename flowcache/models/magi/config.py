"""MAGI-1's configuration, in the layout and under the names of the official JSON files (example/*/*.json)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowcache.models.checkpoint import CheckpointError, read_json
from flowcache.options import check_counts, is_count

TEMPORAL_FACTOR = 4  # pixel frames a latent frame
PROJECTION_SLICES = 8  # self- and cross-attention outputs interleave in 8 slices, a remnant of training on 8 GPUs
_SIZES = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "caption_channels",
    "caption_max_length",
    "in_channels",
    "out_channels",
    "patch_size",
    "t_patch_size",
)
_DTYPES = {"torch.bfloat16": torch.bfloat16, "torch.float16": torch.float16, "torch.float32": torch.float32}


def check_sizes(config: Any, names: Sequence[str], least: int = 1) -> None:
    """Refuse fields that are no whole numbers of at least ``least``, as a foreign JSON may hold. Raises ValueError."""
    for name in names:
        check_counts(least, **{name: getattr(config, name)})


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the transformer, under the names of the official ``model_config``.

    ``xattn_cond_hidden_ratio`` and ``cond_gating_ratio`` are 1 in every released checkpoint and only 1 is supported.
    ``half_channel_vae`` (24B) doubles the 16 latent channels on the way in and keeps the first half on the way out.
    ``distill`` adds the step-size embedding of the distilled checkpoints.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    caption_channels: int = 4096
    caption_max_length: int = 800
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    t_patch_size: int = 1
    cond_hidden_ratio: float = 0.25
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False
    layernorm_epsilon: float = 1e-6
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False
    distill: bool = False
    params_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_sizes(self, _SIZES)
        if self.xattn_cond_hidden_ratio != 1.0 or self.cond_gating_ratio != 1.0:
            raise ValueError(
                "xattn_cond_hidden_ratio and cond_gating_ratio must be 1.0, as in every released checkpoint"
            )
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_query_groups} key-value heads evenly; "
                "num_query_groups must divide num_attention_heads"
            )
        if self.query_width % PROJECTION_SLICES:
            raise ValueError(
                f"num_attention_heads * kv_channels = {self.query_width} must be a multiple of {PROJECTION_SLICES}"
            )

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.kv_channels

    @property
    def key_width(self) -> int:
        return self.num_query_groups * self.kv_channels

    @property
    def condition_width(self) -> int:
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that the model is given and returns."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels


# The released networks, distilled (SandAI-org/MAGI-1: example/4.5B and example/24B, *_distill_config.json). The others
# differ in lacking the step-size embedding alone.
NETWORKS = {
    "4.5B": DitConfig(
        num_layers=34,
        hidden_size=3072,
        ffn_hidden_size=12288,
        num_attention_heads=24,
        num_query_groups=8,
        kv_channels=128,
        distill=True,
        params_dtype=torch.bfloat16,
    ),
    "24B": DitConfig(
        num_layers=48,
        hidden_size=6144,
        ffn_hidden_size=16384,
        num_attention_heads=48,
        num_query_groups=8,
        kv_channels=128,
        in_channels=32,
        out_channels=32,
        half_channel_vae=True,
        x_rescale_factor=0.1,
        gated_linear_unit=True,
        distill=True,
        params_dtype=torch.bfloat16,
    ),
}


@dataclass(frozen=True)
class Runtime:
    """How MAGI-1 samples; names as in the official ``runtime_config`` and ``engine_config``.

    The defaults are the FlowCache paper's setting, in which chunks see all earlier ones. The released configurations
    have ``noise2clean_kvrange`` = [5, 4, 3, 2] instead, which takes less compute.

    Attributes:
        cfg_number: guidance passes, 1 (distilled) or 3.
        cfg_t_range, prev_chunk_scales, text_scales: guidance scales by time (three passes only).
        noise2clean_kvrange: how many chunks back a chunk sees, itself included, by stage of its denoising; empty = all.
        clean_chunk_kvrange: the same for clean chunks; -1 takes the list's last entry.
        clean_t: the time given to finished chunks.
        video_size_h, video_size_w: pixels.
        num_steps, window_size, chunk_width: steps a chunk, chunks in the window, latent frames a chunk.
        near_clean_threshold: the oldest chunk's time beyond which its near-clean copy runs (guidance 1); >= 1 never.
        near_clean_history_weight: weight of the pass with history against the copy without.
        shortcut_mode: which 12 of 16 steps the 12-step grid takes.
        scale_factor: latents are the VAE's mean times this.
        schedule, shift: of the time table, see flowcache.schedule.timesteps.
        trained_num_steps: the values of num_steps that the weights were trained for; empty where that is not known. No
            official configuration has it.
    """

    cfg_number: int = 1
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.5, 1.5)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 7.5, 7.5)
    noise2clean_kvrange: tuple[int, ...] = ()
    clean_chunk_kvrange: int = -1
    clean_t: float = 0.9999
    video_size_h: int = 720
    video_size_w: int = 720
    num_steps: int = 64
    window_size: int = 4
    fps: int = 24
    chunk_width: int = 6
    scale_factor: float = 0.18215
    near_clean_threshold: float = 0.3
    near_clean_history_weight: float = 0.7
    shortcut_mode: str = "8,16,16"
    schedule: str = "sd3"
    shift: float = 3.0
    trained_num_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self, ("num_steps", "window_size", "chunk_width", "fps"))
        check_sizes(self, ("video_size_h", "video_size_w"), least=0)
        if not (isinstance(self.shift, (int, float)) and 0 < self.shift < math.inf):
            raise ValueError(f"shift={self.shift!r} must be a finite number above 0 (1 leaves the time table even)")
        if self.cfg_number not in (1, 3):
            raise ValueError(f"cfg_number={self.cfg_number} is not a guidance of MAGI-1; choose 1 (distilled) or 3")
        if not len(self.cfg_t_range) == len(self.prev_chunk_scales) == len(self.text_scales):
            raise ValueError("cfg_t_range, prev_chunk_scales and text_scales must have one entry each per time range")
        counts = self.trained_num_steps
        if not isinstance(counts, tuple) or not all(is_count(count) for count in counts):
            raise ValueError(f"trained_num_steps={counts!r} must be a list of whole numbers of at least 1")
        ranges, clean = self.noise2clean_kvrange, self.clean_chunk_kvrange
        if not isinstance(ranges, tuple) or not all(is_count(chunks) for chunks in ranges):
            raise ValueError(
                f"noise2clean_kvrange={ranges!r} must be a list of whole numbers of at least 1, how many chunks back a "
                "chunk sees by stage, itself included; an empty one is all"
            )
        if clean != -1 and not is_count(clean):
            raise ValueError(f"clean_chunk_kvrange={clean!r} must be a whole number of at least 1, or -1")
        stages = len(ranges)
        if stages and self.num_steps % stages:
            raise ValueError(f"num_steps={self.num_steps} does not divide into {stages} entries of noise2clean_kvrange")

    def look_back(self, step: int | None) -> int | None:
        """Chunks that a chunk at its own ``step`` sees, itself included (None: a clean one); None means all."""
        ranges = self.noise2clean_kvrange
        if not ranges:
            return None
        if step is not None:
            return ranges[step // (self.num_steps // len(ranges))]
        return ranges[-1] if self.clean_chunk_kvrange == -1 else self.clean_chunk_kvrange

    @property
    def prefix_look_back(self) -> int:
        """The same for prefix chunks; 8 where neither setting names a range."""
        if self.clean_chunk_kvrange != -1:
            return self.clean_chunk_kvrange
        return self.noise2clean_kvrange[-1] if self.noise2clean_kvrange else 8

    def guidance_scales(self, t: float) -> tuple[float, float]:
        """Previous-chunk and text scale at time t: those of the last range whose start lies below t."""
        starts = torch.tensor(self.cfg_t_range, dtype=torch.float32) - 1e-7
        index = int(torch.searchsorted(starts, torch.tensor(t, dtype=torch.float32))) - 1
        return self.prev_chunk_scales[index], self.text_scales[index]


@dataclass(frozen=True)
class MagiConfig:
    """Network and sampling configuration of one checkpoint."""

    dit: DitConfig
    runtime: Runtime = field(default_factory=Runtime)

    @classmethod
    def from_json(cls, path: Path) -> MagiConfig:
        """Read an official configuration file. Entries about parallel execution and file paths are ignored."""
        try:
            document = read_json(path, "a MAGI-1 configuration")
            model, runtime, engine = (dict(document[k]) for k in ("model_config", "runtime_config", "engine_config"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no MAGI-1 configuration at {path}; copy the official JSON of the checkpoint there "
                "(for example example/4.5B/4.5B_distill_config.json of the MAGI-1 repository)"
            ) from None
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a MAGI-1 configuration ({error}); expected JSON with model_config, runtime_config and "
                "engine_config, as in the official example folder"
            ) from error
        if engine.get("fp8_quant"):
            raise ValueError(f"{path} asks for fp8_quant, which this library does not run; use a bf16 checkpoint")
        dit = _pick(DitConfig, model) | {"distill": bool(engine.get("distill", False))}
        dtype = model.get("params_dtype", "torch.bfloat16")
        if dtype not in _DTYPES:
            raise ValueError(f"{path} asks for params_dtype {dtype!r}; there are {', '.join(_DTYPES)}")
        dit["params_dtype"] = _DTYPES[dtype]
        sampling = _pick(Runtime, runtime) | _pick(Runtime, engine)
        if "distill_nearly_clean_chunk_threshold" in engine:
            sampling["near_clean_threshold"] = engine["distill_nearly_clean_chunk_threshold"]
        try:
            return cls(DitConfig(**dit), Runtime(**sampling))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a MAGI-1 configuration ({error}); download it again") from error


def _pick(config: type, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries that are fields of ``config``, lists as tuples."""
    names = {f.name for f in dataclasses.fields(config)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items() if k in names}
