"""What every caching method is configured by; a method is a dataclass that makes a policy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from flowcache.distance import POLYNOMIALS, Polynomial, rescaling
from flowcache.kv_budget import parse_budget
from flowcache.kv_score import CompressionConfig
from flowcache.policy import ChunkwiseReuse, Replay, ReusePolicy
from flowcache.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Options that all methods share. What an option does on one model only, it says.

    Attributes:
        attention: what a chunk attends to. "cached": itself and earlier chunks, through the KV cache. "native": as the
            model was published, which on SkyReels-V2 is every chunk of the window, later ones too, all computed again
            in every row. "causal": itself and earlier chunks, all computed again in every row. On MAGI-1 all three are
            the first, since its finished chunks would only be computed to the same keys again.
        reuse: what a reusing chunk repeats. None takes the model's sound form: "velocity" on MAGI-1, so that the step
            has its own length, and "residual" on SkyReels-V2, what the blocks added, put through the head with the
            current time. "displacement" is MAGI-1's last one unscaled, as published (fidelity row 5).
        refresh_clean_kv: encode a finished chunk's keys and values once more, clean (default; on MAGI-1 without
            caption, as its vanilla does); False leaves those of its last computed step, as published (row 7).
        near_clean: run the extra copy of the oldest chunk when it is nearly clean (MAGI-1, guidance 1), whenever that
            chunk is computed; False drops it, as FlowCache's released configuration does (row 19).
        prefix: a window's given chunks are "clean" before its first row, or one row later, as "published" (SkyReels-V2,
            row 8): where chunks see a limited number of clean ones, the first row then sees none.
        kv_budget: what finished chunks' keys and values may take in every layer, head and guidance branch, such as
            "2 chunks" or "4096 tokens"; or, as "64 MiB", what all caches may take together with the chunks being
            denoised. The cache is compressed to it, and allocated for it. None keeps everything.
        compression: how a cache over its budget chooses what to keep.
    """

    attention: Literal["cached", "native", "causal"] = "cached"
    reuse: Literal["velocity", "residual", "displacement"] | None = None
    refresh_clean_kv: bool = True
    near_clean: bool = True
    prefix: Literal["clean", "published"] = "clean"
    kv_budget: str | None = None
    compression: CompressionConfig = field(default_factory=CompressionConfig)

    def __post_init__(self) -> None:
        if self.attention not in ("cached", "native", "causal"):
            raise ValueError(f"attention={self.attention!r} is unknown; choose 'cached', 'native' or 'causal'")
        if self.reuse not in ("velocity", "residual", "displacement", None):
            raise ValueError(
                f"reuse={self.reuse!r} is unknown; choose 'velocity' or 'displacement' (MAGI-1), 'residual' "
                "(SkyReels-V2), or null for the model's own"
            )
        check_switches(refresh_clean_kv=self.refresh_clean_kv, near_clean=self.near_clean)
        if self.prefix not in ("clean", "published"):
            raise ValueError(f"prefix={self.prefix!r} is unknown; choose 'clean' or 'published'")
        if self.kv_budget is not None:
            parse_budget(self.kv_budget)
        if not isinstance(self.compression, CompressionConfig):
            raise TypeError(f"compression={self.compression!r} must be a flowcache.kv_score.CompressionConfig")

    @abstractmethod
    def policy(self) -> ReusePolicy:
        """A fresh policy for one generation."""

    def check_schedule(self, schedule: Schedule) -> None:  # noqa: B027 - most methods go with any schedule
        """Refuse, before any work, options that do not go with a generation's schedule. Raises ValueError."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """Given decisions, such as those of a recorded trace (``Trace.computed_rows``).

    Attributes:
        computed: for every row the chunks to compute.
    """

    computed: tuple[tuple[int, ...], ...]

    @classmethod
    def like(cls, method: MethodConfig, computed: Sequence[Sequence[int]]) -> ReplayConfig:
        """With the shared options of a method, whose decisions these are."""
        shared = {option.name: getattr(method, option.name) for option in fields(MethodConfig)}
        return cls(**shared, computed=tuple(tuple(chunks) for chunks in computed))

    def policy(self) -> ReusePolicy:
        return Replay(self.computed)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is not a finite number of at least 0."""
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not (is_number and math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold={threshold!r} must be a finite number of at least 0 (0 never reuses)")


def check_warmup(warmup_steps: int) -> None:
    """Refuse a warm-up that is not a whole number of at least 0."""
    if not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool) or warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps!r} must be a whole number of at least 0")


def check_warmup_fits(warmup_steps: int, most: int, of_what: str) -> None:
    """Refuse a warm-up that is longer than all there is: such a method never reuses, and is vanilla by another name."""
    if warmup_steps > most:
        raise ValueError(
            f"warmup_steps={warmup_steps} is more than the {most} {of_what}, so that nothing would ever be reused; "
            f"choose 0 to {most}"
        )


def check_switches(**switches: bool) -> None:
    """Refuse a switch that is neither true nor false: any text, "no" too, would count as true."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")


def check_polynomial(config: MethodConfig) -> None:
    """Refuse a rescaled distance without a polynomial, or the reverse; keep coefficients as a tuple."""
    if not isinstance(config.distance, str):
        raise ValueError(f"distance={config.distance!r} must be the name of a distance, such as 'embedded_latent'")
    if config.distance.startswith("rescaled_") == (config.polynomial is None):
        raise ValueError(
            f"distance={config.distance!r} does not go with polynomial={config.polynomial!r}: a rescaled distance "
            f"needs one ({', '.join(POLYNOMIALS)}, or coefficients), and no other takes any"
        )
    rescaling(config.polynomial)
    if config.polynomial is not None and not isinstance(config.polynomial, str):
        object.__setattr__(config, "polynomial", tuple(float(coefficient) for coefficient in config.polynomial))


@dataclass(frozen=True, kw_only=True)
class FlowCacheConfig(MethodConfig):
    """FlowCache: chunkwise reuse (arXiv 2602.10825).

    Attributes:
        threshold: accumulated distance below which a chunk reuses; higher reuses more. 0 never reuses.
        warmup_steps: first steps of each chunk that always compute (m in the paper).
        last_step: "own" also computes each chunk's last step; "global" is the published rule (fidelity row 4).
        distance: "embedded_latent" as published on MAGI-1, "rescaled_modulation" as published on SkyReels-V2 (it
            follows the schedule alone, whatever the content), or "latent" as in the paper's text.
        polynomial: that a rescaled distance is put through: a name of ``flowcache.distance.POLYNOMIALS``, or its
            coefficients, highest power first.
    """

    threshold: float
    warmup_steps: int
    last_step: Literal["own", "global"] = "own"
    distance: str = "embedded_latent"
    polynomial: Polynomial | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        check_polynomial(self)
        if self.last_step not in ("own", "global"):
            raise ValueError(f"last_step={self.last_step!r} is unknown; choose 'own' or 'global'")

    def check_schedule(self, schedule: Schedule) -> None:
        check_warmup_fits(self.warmup_steps, schedule.num_steps, "steps of a chunk")

    def policy(self) -> ReusePolicy:
        return ChunkwiseReuse(self.threshold, self.warmup_steps, self.last_step, self.distance, self.polynomial)
