"""What the sampler asks of a model: one generation at a time, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.distance import FeatureSource
from flowcache.kernels import AUTO
from flowcache.method import MethodConfig
from flowcache.policy import Decision
from flowcache.schedule import Row, Schedule
from flowcache.trace import Trace, Work

MOST_SEED = 2**63 - 1  # what a table's integers hold


def check_request(prompt: str, seed: int) -> None:
    """Refuse, before any work, a prompt that says nothing and a seed that no generator takes. Raises ValueError."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("the prompt is empty; say what the video shows")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed!r} must be a whole number of 0 to {MOST_SEED}")


def check_method(method: MethodConfig, schedule: Schedule, distances: Sequence[str], model: str) -> None:
    """Refuse, before any work, a method that does not go with a schedule, or whose distance a model cannot measure.

    Raises ValueError.
    """
    method.check_schedule(schedule)
    distance = method.policy().distance
    if distance is not None and distance not in distances:
        raise unknown_distance(distance, distances, model)


def unknown_distance(distance: str, distances: Sequence[str], model: str) -> ValueError:
    *others, last = map(repr, distances)
    return ValueError(f"distance={distance!r} is unknown to {model}; choose {', '.join(others)} or {last}")


class Generation(FeatureSource, Protocol):
    """One video in the making. It owns all state, so that two generations of one model never meet.

    The sampler calls ``start`` once, then for every row ``begin_row``, ``features`` (if the policy measures),
    ``compute``, ``advance``, and ``finish`` for every chunk the row finished.
    """

    schedule: Schedule

    def measured_chunks(self, row: Row) -> tuple[int, ...]:
        """The chunks whose distances a policy gets: neighbours, the active ones among them."""
        ...

    def start(self, clock: SectionClock) -> Sequence[Work]:
        """Work before the first row, such as caption keys and prefix chunks. ``clock`` is the run's: what happens
        within the sampler's sections, such as compression, counts there by its own name."""
        ...

    def begin_row(self, row: Row) -> None:
        """Put given content (prefix frames, a window's beginning) in place."""
        ...

    def compute(self, row: Row, decision: Decision) -> Sequence[Work]:
        """Run the chunks to compute, and whatever must run beside them, in one forward; remember their output."""
        ...

    def advance(self, row: Row, decision: Decision) -> None:
        """Let every active chunk take its step, with its new or its remembered output."""
        ...

    def finish(self, chunk: int) -> Tensor:
        """The finished chunk's latent [C, f, h, w]; its keys and values become clean."""
        ...

    def decode(self, chunk: int, latent: Tensor) -> Tensor:
        """A finished chunk's new frames, uint8 [F, H, W, 3]."""
        ...

    def paper_flops(self, trace: Trace) -> int:
        """What the FlowCache paper would charge for a finished run of this generation, in FLOPs."""
        ...

    @property
    def kv_tokens(self) -> int: ...

    @property
    def kv_bytes_allocated(self) -> int: ...

    @property
    def kv_bytes_used(self) -> int: ...

    @property
    def kv_unusable_kept(self) -> int:
        """``KvCache.unusable_kept`` of all branches."""
        ...


class VideoModel(Protocol):
    """A model that ``flowcache.generate`` can drive."""

    def generation(self, prompt: str, num_frames: int, method: MethodConfig, seed: int, **options: Any) -> Generation:
        """A fresh generation; ``options`` are the model's own (steps, size, prefix ...)."""
        ...

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks, nothing given."""
        ...

    @property
    def weights_bytes(self) -> dict[str, int]:
        """What its networks' weights take, by name."""
        ...

    def set_kernels(self, attention_backend: str = AUTO, compiled: bool = False) -> None:
        """How the transformer is run from now on, see flowcache.kernels; what is compiled stays so.

        Raises ValueError for an unknown backend.
        """
        ...
