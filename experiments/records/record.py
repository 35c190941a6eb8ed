"""What is kept of one generated video."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

SCHEMA_VERSION = 3
Status = Literal["queued", "running", "finished", "failed"]
# What differs between two runs of one video on one machine; the rest of a record does not.
TIMED = (
    "latency_s",
    "baseline_latency_s",
    "sections_s",
    "chunk_latency_s",
    "peak_memory_gib",
    "timings",
    "environment",
    "changed",
    "maker",
)


@dataclass(frozen=True)
class Timing:
    """How long a video took, and on what. Attributes as in ``Record``."""

    latency_s: float
    baseline_latency_s: float | None
    sections_s: dict[str, float]
    chunk_latency_s: list[float]
    peak_memory_gib: float | None
    environment: dict[str, Any]


@dataclass
class Record:
    """One generated video.

    Attributes:
        key: hash of settings, method, prompt, seed and weights, and after a hyphen of the code; names the directory.
        status: "queued", "running" (or interrupted, if nobody holds its lock), "finished", "failed" (see error).
        maker: host and process that ran it last.
        changed: when the status last did, UTC.
        artifacts: sha256 of the directory's other files, by name; of finished ones.
        method_config: of the method and each of its parts the class and all options.
        code: hash of the code that decides the video and what it is compared with: of ``modules`` and all they import.
        metrics: by name, units in names (psnr and latent_snr in dB); infinite values as the text "inf"; unavailable
            ones as None.
        metrics_code: hash of the code of each metric that was asked for, the caption's too.
        reference: key of the video that the metrics compare with; None of a baseline.
        notes: why a metric is None, by name.
        latency_s: the whole generation, from prompt to decoded frames; None where it was not timed.
        baseline_latency_s: vanilla's, timed right before this one on the same prompt in the same process.
        sections_s: latency by part: text, transformer, policy, scheduler, compression, vae.
        chunk_latency_s: from the prompt to the decoded frames of the first, second ... chunk.
        peak_memory_gib: most that the GPU's allocator gave out at once; None on a CPU.
        environment: machine, software, workers and threads that the video was made and first timed with.
        timings: taken later of the finished video, by the way they were taken (``experiments.records.timings``).
        flops, flops_by_kind, flops_by_part: executed by the transformer.
        baseline_flops: vanilla's.
        computed_fraction: chunk steps computed over all chunk steps.
        kv_bytes_allocated, kv_bytes_used_peak: of the caches of all branches.
        kv_bytes_by_use: of those allocated: "entries" in the type that they are held in, "codes", their "scales" (and
            lowest numbers, ids, centroids), those in "host" memory, the "read_buffer" in which a layer is put in order,
            and what a "selection" remembers. Empty in records of before it was told.
        kv_bits: of a number of a finished chunk, with what its code is read by; 0 in records of before it was told, and
            without a cache.
        forecast_bytes_peak: of the outputs that forecasts look back on.
        remarks: what the generation warned of, such as a part of the method that had no effect.
        caption: what was seen in the video against its caption, where that can be told.
    """

    key: str
    model: str
    setting: str
    method: str
    method_config: dict[str, Any]
    prompt: str
    seed: int
    settings: dict[str, Any]
    weights: str
    code: str
    modules: list[str] = field(default_factory=list)
    status: Status = "queued"
    error: str | None = None
    maker: str | None = None
    changed: str | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | str | None] = field(default_factory=dict)
    metrics_code: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    latency_s: float | None = None
    baseline_latency_s: float | None = None
    sections_s: dict[str, float] = field(default_factory=dict)
    chunk_latency_s: list[float] = field(default_factory=list)
    peak_memory_gib: float | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    flops: int = 0
    baseline_flops: int = 0
    flops_by_kind: dict[str, int] = field(default_factory=dict)
    flops_by_part: dict[str, int] = field(default_factory=dict)
    computed_fraction: float = 1.0
    kv_bytes_allocated: int = 0
    kv_bytes_by_use: dict[str, int] = field(default_factory=dict)
    kv_bytes_used_peak: int = 0
    kv_bits: float = 0.0
    forecast_bytes_peak: int = 0
    remarks: list[str] = field(default_factory=list)
    caption: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def latency_first_chunk_s(self) -> float | None:
        """From the prompt to the decoded frames of the first chunk; None where it was not timed."""
        return self.chunk_latency_s[0] if self.chunk_latency_s else None

    @property
    def fps(self) -> float | None:
        """Frames generated a second of ``latency_s``; None where it was not timed."""
        return self.settings["num_frames"] / self.latency_s if self.latency_s else None


def untimed(record: Record) -> dict[str, Any]:
    """The part of a record that is the same whenever and beside whatever the video is made."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in TIMED}


def plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text and None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value
