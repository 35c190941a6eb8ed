"""One JSON a video: what was asked, what came out, on which machine. Written whole or not at all, found by its key."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from eval.atomic import atomic_path
from experiments.job import ROOT, Job

SCHEMA_VERSION = 1
_CODE_FOLDERS = ("flowcache", "baselines")


@dataclass
class Record:
    """One generated video.

    Attributes:
        key: hash of settings, method, prompt, seed, weights and code; also the name of its files.
        status: "done", or "failed" with the error's text.
        metrics: by name, units in names (psnr in dB); infinite values as the text "inf"; unavailable ones as None.
        notes: why a metric is None, by name.
        latency_s: the whole generation, from prompt to decoded frames; None where it was not timed.
        baseline_latency_s: vanilla's, timed right before this one on the same prompt in the same process.
        sections_s: latency by part: text, transformer, policy, scheduler, compression, vae.
        chunk_latency_s: from the prompt to the decoded frames of the first, second ... chunk.
        flops, flops_by_kind, flops_by_part: executed by the transformer.
        baseline_flops: vanilla's.
        computed_fraction: chunk steps computed over all chunk steps.
        kv_bytes_allocated, kv_bytes_used_peak: of the caches of all branches.
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
    status: Literal["done", "failed"] = "done"
    error: str | None = None
    metrics: dict[str, float | str | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    latency_s: float | None = None
    baseline_latency_s: float | None = None
    sections_s: dict[str, float] = field(default_factory=dict)
    chunk_latency_s: list[float] = field(default_factory=list)
    flops: int = 0
    baseline_flops: int = 0
    flops_by_kind: dict[str, int] = field(default_factory=dict)
    flops_by_part: dict[str, int] = field(default_factory=dict)
    computed_fraction: float = 1.0
    kv_bytes_allocated: int = 0
    kv_bytes_used_peak: int = 0
    caption: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class RecordStore:
    """A folder of records, videos and traces."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record_path(self, key: str) -> Path:
        return self.directory / "records" / f"{key}.json"

    def video_path(self, key: str) -> Path:
        """Lossless, for metrics."""
        return self.directory / "videos" / f"{key}.mkv"

    def preview_path(self, key: str) -> Path:
        """Small, for people."""
        return self.directory / "videos" / f"{key}.mp4"

    def trace_path(self, key: str) -> Path:
        return self.directory / "traces" / f"{key}.parquet"

    def find(self, key: str) -> Record | None:
        """A finished record whose video is there, or None. A damaged record counts as none."""
        try:
            record = Record(**json.loads(self.record_path(key).read_text()))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        usable = record.status == "done" and record.schema_version == SCHEMA_VERSION and record.key == key
        return record if usable and self.video_path(key).is_file() else None

    def save(self, record: Record) -> Path:
        path = self.record_path(record.key)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(_plain(asdict(record)), indent=1, sort_keys=True) + "\n")
        return path

    def all(self) -> Iterator[Record]:
        """Every readable record of this schema, in order of name."""
        for path in sorted((self.directory / "records").glob("*.json")):
            try:
                record = Record(**json.loads(path.read_text()))
            except (ValueError, TypeError, RecursionError):
                continue
            if record.schema_version == SCHEMA_VERSION and record.key == path.stem:  # a key becomes file names
                yield record


def new_record(job: Job, method_name: str, method: Any, prompt: str) -> Record:
    """An empty record with its key."""
    identity = {
        "settings": job.settings,
        "method_class": type(method).__name__,
        "method_config": asdict(method),
        "prompt": prompt,
        "seed": job.seed,
        "weights": weights_hash(job.checkpoint),
        "code": code_hash(),
        "schema_version": SCHEMA_VERSION,
    }
    key = hashlib.sha256(json.dumps(_plain(identity), sort_keys=True).encode()).hexdigest()[:20]
    return Record(
        key=key,
        model=job.model_name,
        setting=job.setting_name,
        method=method_name,
        method_config=asdict(method),
        prompt=prompt,
        seed=job.seed,
        settings=job.settings,
        weights=identity["weights"],
        code=identity["code"],
    )


@cache
def code_hash() -> str:
    """Of the library's and the methods' source: a change that could alter a video makes new records."""
    digest = hashlib.sha256()
    for folder in _CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def weights_hash(checkpoint: Path) -> str:
    """Of a checkpoint's small files, and of the names and sizes of its large ones (hashing 9 GB takes a minute)."""
    digest = hashlib.sha256()
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.suffix != ".md"):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(checkpoint).as_posix()} {size}\0".encode())
        if size < 64 * 2**20:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text and None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value
