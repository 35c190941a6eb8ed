"""What the sampler asks of a model: one generation at a time, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.kernels import AUTO
from flowcache.kv.store.base import Sizes
from flowcache.method import Method
from flowcache.parallel import Parallel
from flowcache.reuse.base import Decision
from flowcache.reuse.distance import FeatureSource
from flowcache.schedule import Row, Schedule
from flowcache.trace import Trace, Work

MOST_SEED = 2**63 - 1  # what a table's integers hold


def check_request(prompt: str | None, seed: int | torch.Generator) -> None:
    """Refuse, before any work, a prompt that says nothing and a seed that no generator takes. Raises ValueError."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("the prompt is empty; say what the video shows")
    if isinstance(seed, torch.Generator):
        if seed.device.type != "cpu":
            raise ValueError(
                f"the generator is on {seed.device}, and noise is drawn on the CPU, so that it is the same on every "
                "device; give torch.Generator(), or a number"
            )
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed!r} must be a whole number of 0 to {MOST_SEED}")


def noise_source(seed: int | torch.Generator) -> torch.Generator:
    """What draws a video's noise: a generator as it is, which moves on, or one that begins at a number."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


class Generation(FeatureSource, Protocol):
    """One video in the making. It owns all state, so that two generations of one model never meet.

    The sampler calls ``start`` once, then for every row ``begin_row``, ``features`` (if the policy measures),
    ``compute``, ``report``, ``advance``, and ``finish`` for every chunk the row finished. Of a policy that asks for
    motion it must be a ``flowcache.reuse.motion.FrameSource``, too.
    """

    schedule: Schedule
    method: Method
    parallel: Parallel

    def follows(self, chunk: int) -> bool:
        """Whether a chunk goes on with what the chunk before it was, by prompt and number of frames, so that it can be
        compared with that one and take over something of it."""
        ...

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

    def report(self) -> tuple[tuple[int, ...], Tensor] | None:
        """What the last ``compute`` showed: its chunks, and float32 [chunks, figures] on the device, in the order of
        the policy's ``report``. None where it asks for nothing, or nothing was computed."""
        ...

    def advance(self, row: Row, decision: Decision) -> None:
        """Let every active chunk take its step, with its new output or the forecast of it."""
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
    def kv_tokens(self) -> int:
        """Tokens that a branch's cache holds, per layer and head."""
        ...

    @property
    def kv_bytes_allocated(self) -> int:
        """Bytes of all branches' caches."""
        ...

    @property
    def kv_bytes_by_use(self) -> Sizes:
        """What of ``kv_bytes_allocated`` is for what."""
        ...

    @property
    def kv_bits(self) -> float:
        """``KvCache.bits_a_number``; 0 without a cache."""
        ...

    @property
    def kv_bytes_used(self) -> int:
        """What of them holds something now."""
        ...

    @property
    def kv_unusable_kept(self) -> int:
        """``KvCache.unusable_kept`` of all branches."""
        ...

    @property
    def kv_compressions(self) -> int:
        """How often a cache was compressed, all branches together."""
        ...

    @property
    def forecast_bytes_peak(self) -> int:
        """Most that outputs which forecasts look back on, and states before steps to be corrected, took at once."""
        ...

    @property
    def forecast_corrections(self) -> int:
        """Gaps of skipped steps that were corrected."""
        ...

    @property
    def forecast_from(self) -> int:
        """Most computed outputs that a forecast has looked back on; 0 if none was made."""
        ...


class VideoModel(Protocol):
    """A model that ``flowcache.generate`` can drive.

    Attributes:
        switches_prompts: its ``generation`` takes ``prompts``, pairs of a first frame and a prompt.
    """

    switches_prompts: bool

    def generation(
        self,
        prompt: str | None,
        num_frames: int,
        method: Method,
        seed: int | torch.Generator,
        *args: Any,
        **options: Any,
    ) -> Generation:
        """A fresh generation; ``options`` are the model's own (steps, size, prefix ...), given by name."""
        ...

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks, nothing given."""
        ...

    @property
    def weights_bytes(self) -> dict[str, int]:
        """What its networks' weights take, by name."""
        ...

    def decoder_on_meta(self, height: int, width: int) -> Callable[[], Tensor] | None:
        """What decodes one chunk of a video of so many pixels on device "meta", for counting: it returns frames uint8
        [F, H, W, 3]. None without a VAE."""
        ...

    def set_kernels(self, attention_backend: str = AUTO, compiled: bool = False) -> None:
        """How the transformer is run from now on, see flowcache.kernels; what is compiled stays so.

        Raises ValueError for an unknown backend.
        """
        ...

    def set_parallel(self, parallel: Parallel) -> None:
        """What this process computes of every generation from now on, see flowcache.parallel."""
        ...
