"""Causal Wan's sampling settings, and the released networks' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from flowcache.models.settings import replaced
from flowcache.models.wan.noise_levels import step_times
from flowcache.models.wan.unipc import noise_levels
from flowcache.options import check_choice, check_counts, check_switches, is_finite, is_number
from flowcache.schedule import Schedule, rolling_schedule, sequential_schedule

TEMPORAL_FACTOR = 4  # pixel frames a latent frame, but for a video's first, which is one
CLEAN = 0.0  # time of given frames

_SHARED = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "freq_dim": 256,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
}
# Configurations of diffusers' WanTransformer3DModel: Wan 2.1 T2V, from which all causal ones are made.
NETWORKS: dict[str, dict[str, Any]] = {
    "1.3B": _SHARED | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": _SHARED | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}


@dataclass(frozen=True)
class Sampling:
    """How causal Wan samples; the defaults are Self-Forcing's (guandeh17/Self-Forcing: configs/self_forcing_dmd.yaml).

    Attributes:
        steps: the steps of a chunk, from 1000 (noise) down, each with fresh noise; for solver "fresh_noise".
        first_steps: those of the first chunk that is generated, where it has its own (thu-ml/Causal-Forcing).
        warp_steps: steps are numbers of the shifted grid, 1000 being its beginning, and not times (krea's 14B).
        shift: of the noise levels towards noise.
        solver: "fresh_noise" estimates the clean latent in every step and noises it anew; "unipc" follows the flow,
            with ``num_steps`` steps, as checkpoints that are not distilled are made for.
        num_steps: of solver "unipc"; fresh noise has a list.
        guidance_scale: of the prompt against the negative prompt; up to 1 there is no second branch.
        height, width: pixels.
        block_frames: latent frames of a chunk.
        first_frame_alone: the first latent frame is a chunk of its own.
        window_frames: latent frames that a chunk attends to, itself and the sink among them; None is all, and so is
            "all", which says so in place of a checkpoint's own.
        sink_frames: the video's first latent frames, that never leave the window.
        relative_rope: the sink stands right before the other frames of the window, however long ago it was
            (NVlabs/LongLive's rotary positions by slot, which come to the same).
        renew_sink: a new prompt begins with a new sink, the first frames of those encoded anew.
        rolling: a chunk starts in every row and sees all that run with it (TencentARC/RollingForcing).
        context_noise: time at which finished chunks' keys are encoded.
    """

    steps: tuple[float, ...] = (1000, 750, 500, 250)
    first_steps: tuple[float, ...] | None = None
    warp_steps: bool = True
    shift: float = 5.0
    solver: Literal["fresh_noise", "unipc"] = "fresh_noise"
    num_steps: int = 50
    guidance_scale: float = 1.0
    height: int = 480
    width: int = 832
    block_frames: int = 3
    first_frame_alone: bool = False
    window_frames: int | Literal["all"] | None = None
    sink_frames: int = 0
    relative_rope: bool = False
    renew_sink: bool = False
    rolling: bool = False
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.window_frames == "all":
            object.__setattr__(self, "window_frames", None)
        smallest = {"num_steps": 1, "height": 1, "width": 1, "block_frames": 1, "sink_frames": 0}
        if self.window_frames is not None:
            smallest["window_frames"] = 1
        for name, least in smallest.items():
            check_counts(least, **{name: getattr(self, name)})
        for name in ("warp_steps", "first_frame_alone", "relative_rope", "renew_sink", "rolling"):
            check_switches(**{name: getattr(self, name)})
        check_choice("solver", self.solver, ("fresh_noise", "unipc"))
        for name in ("steps", "first_steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked_steps(name))
        if not (is_finite(self.shift) and self.shift > 0):
            raise ValueError(f"shift={self.shift!r} must be positive and finite (1 leaves the noise levels even)")
        if not is_finite(self.guidance_scale):
            raise ValueError(f"guidance_scale={self.guidance_scale!r} must be a finite number (up to 1 is no guidance)")
        if not (is_finite(self.context_noise) and 0 <= self.context_noise < 1000):
            raise ValueError(f"context_noise={self.context_noise!r} must be a time of at least 0 and below 1000")
        if self.solver == "unipc" and (self.rolling or self.first_steps is not None):
            raise ValueError(
                "solver='unipc' takes num_steps in every chunk, one after another; leave rolling false and "
                "first_steps null, or choose solver='fresh_noise'"
            )
        self._check_window()
        if self.rolling:
            self._check_rolling()

    def replaced(self, settings: Mapping[str, Any]) -> Sampling:
        """With some settings exchanged, those that are None left alone. Raises ValueError for an unknown name, and for
        a number of steps where they are a list."""
        made, num_steps = replaced(self, settings, "causal Wan"), settings.get("num_steps")
        if num_steps is not None and made.solver == "fresh_noise":
            raise ValueError(
                f"num_steps={num_steps!r} is of solver='unipc', and steps with fresh noise are a list; choose "
                "steps=[1000, 500], or such, and num_steps null"
            )
        return made

    def times(self, first: bool = False) -> tuple[float, ...]:
        """Of a chunk's steps with fresh noise; of the first generated chunk's, where it has its own."""
        own = self.first_steps if first and self.first_steps is not None else self.steps
        return step_times(own, self.shift, self.warp_steps)

    def schedule(self, num_chunks: int, prefix_chunks: int) -> Schedule:
        """Of a video of so many chunks, the first of which are given. Raises ValueError where none is left."""
        if self.rolling:
            return rolling_schedule(num_chunks, self.times(), prefix_chunks)
        if self.solver == "unipc":
            return sequential_schedule(num_chunks, noise_levels(self.num_steps, self.shift)[1], prefix_chunks)
        return sequential_schedule(num_chunks, self.times(), prefix_chunks, self.times(first=True))

    @property
    def most_steps(self) -> int:
        """Of any chunk with fresh noise."""
        return max(len(self.steps), len(self.first_steps or ()))

    def _checked_steps(self, name: str) -> tuple[float, ...]:
        steps = getattr(self, name)
        numbers = isinstance(steps, (list, tuple)) and len(steps) > 0 and all(map(is_number, steps))
        if not numbers or not all(0 <= step <= 1000 for step in steps):
            raise ValueError(f"{name}={steps!r} must be a list of numbers from 1000 (noise) to 0, such as [1000, 500]")
        if any(later >= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"{name}={list(steps)} must fall from step to step, from 1000 (noise) towards 0")
        if steps[0] != 1000:
            raise ValueError(f"{name}={list(steps)} must begin with 1000: a chunk begins as pure noise")
        if self.warp_steps and any(step != int(step) for step in steps):
            raise ValueError(
                f"{name}={list(steps)} holds fractions, and with warp_steps true they are numbers of a grid of a "
                "thousand; give whole ones, or warp_steps=false for times"
            )
        return tuple(steps)

    def _check_window(self) -> None:
        window, sink, block = self.window_frames, self.sink_frames, self.block_frames
        if window is None:
            wanted = {"sink_frames": sink, "relative_rope": self.relative_rope, "renew_sink": self.renew_sink}
            if named := [name for name, value in wanted.items() if value]:
                raise ValueError(
                    f"{named[0]}={wanted[named[0]]} is of a window that older frames leave, and without window_frames "
                    f"none does; give window_frames too, or {named[0]}={'0' if named[0] == 'sink_frames' else 'false'}"
                )
        elif window < sink + block:
            raise ValueError(
                f"window_frames={window} cannot hold the sink of {sink} latent frames and the block of {block} that is "
                f"denoised, both of which count; choose at least {sink + block}, or a smaller sink"
            )

    def _check_rolling(self) -> None:
        window, block = self.window_frames, self.block_frames
        if self.first_steps is not None or self.first_frame_alone or self.relative_rope:
            raise ValueError(
                "rolling=true runs equal chunks of equal steps, and places its sink by itself; leave "
                "first_steps null, first_frame_alone and relative_rope false"
            )
        together = len(self.steps) * block
        if window is None or window % block or self.sink_frames != block or window < self.sink_frames + together:
            raise ValueError(
                f"rolling=true denoises {len(self.steps)} chunks of {block} latent frames together, beside a sink of "
                f"one chunk; choose sink_frames={block} and window_frames of whole chunks, at least {together + block} "
                f"(published: 21), not {self.sink_frames} and {window}"
            )
