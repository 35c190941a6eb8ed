"""What every caching method is configured by; a method is a dataclass that makes a policy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from flowcache.policy import ChunkwiseReuse, ReusePolicy


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Options that all methods share.

    Attributes:
        reuse: what a reusing chunk repeats: its last "velocity", so that the step has its own length (default), or its
            last "displacement" unscaled, as the published code does (fidelity row 5).
        refresh_clean_kv: encode a finished chunk's keys and values once more, clean and without caption, as vanilla
            MAGI-1 does (default); False leaves those of its last computed step, as published (row 7).
        near_clean: run the extra copy of the oldest chunk when it is nearly clean (MAGI-1, guidance 1), whenever that
            chunk is computed; False drops it, as FlowCache's released configuration does (row 19).
    """

    reuse: Literal["velocity", "displacement"] = "velocity"
    refresh_clean_kv: bool = True
    near_clean: bool = True

    def __post_init__(self) -> None:
        if self.reuse not in ("velocity", "displacement"):
            raise ValueError(f"reuse={self.reuse!r} is unknown; choose 'velocity' or 'displacement'")

    @abstractmethod
    def policy(self) -> ReusePolicy:
        """A fresh policy for one generation."""


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is not a finite number of at least 0."""
    if not (isinstance(threshold, (int, float)) and math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold={threshold!r} must be a finite number of at least 0 (0 never reuses)")


def check_warmup(warmup_steps: int) -> None:
    """Refuse a warm-up that is not a whole number of at least 0."""
    if not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool) or warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps!r} must be a whole number of at least 0")


@dataclass(frozen=True, kw_only=True)
class FlowCacheConfig(MethodConfig):
    """FlowCache: chunkwise reuse (arXiv 2602.10825).

    Attributes:
        threshold: accumulated distance below which a chunk reuses; higher reuses more. 0 never reuses.
        warmup_steps: first steps of each chunk that always compute (m in the paper).
        last_step: "own" also computes each chunk's last step; "global" is the published rule (fidelity row 4).
        distance: "embedded_latent" as published on MAGI-1, or "latent" as in the paper's text.
    """

    threshold: float
    warmup_steps: int
    last_step: Literal["own", "global"] = "own"
    distance: str = "embedded_latent"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        check_warmup(self.warmup_steps)
        if self.last_step not in ("own", "global"):
            raise ValueError(f"last_step={self.last_step!r} is unknown; choose 'own' or 'global'")

    def policy(self) -> ReusePolicy:
        return ChunkwiseReuse(self.threshold, self.warmup_steps, self.last_step, self.distance)
