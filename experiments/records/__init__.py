"""A directory a video: what was asked, what came out, on which machine; and who is making it. ``python -m
experiments.records`` lists, shows, verifies and prunes them.

A record is written whole or not at all, and found by its key. Whoever makes a video holds the lock of its directory,
which the system lets go of when the holder dies: several processes, on one machine or several with a shared file system
that has locks, drain one list of videos and none is made twice.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from eval.atomic import atomic_path, sync_folder
from eval.cache import cache_folder
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.paths import ROOT
from flowcache.checkpoints import loaded_files
from flowcache.models.checkpoint import CheckpointError

SCHEMA_VERSION = 2
CODE_FOLDERS = ("flowcache", "baselines")
LOCK_POLL_S = 1.0
LARGE_BYTES = 64 * 2**20  # files of weights from which on a hash is worth remembering
# What differs between two runs of one video on one machine; the rest of a record does not.
TIMED = (
    "latency_s",
    "baseline_latency_s",
    "sections_s",
    "chunk_latency_s",
    "peak_memory_gib",
    "environment",
    "changed",
    "maker",
)
Status = Literal["queued", "running", "finished", "failed"]


@dataclass
class Record:
    """One generated video.

    Attributes:
        key: hash of settings, method, prompt, seed and weights, and after a hyphen of the code; names the directory.
        status: "queued", "running" (or interrupted, if nobody holds its lock), "finished", "failed" (see error).
        maker: host and process that ran it last.
        changed: when the status last did, UTC.
        artifacts: sha256 of the directory's other files, by name; of finished ones.
        metrics: by name, units in names (psnr in dB); infinite values as the text "inf"; unavailable ones as None.
        notes: why a metric is None, by name.
        latency_s: the whole generation, from prompt to decoded frames; None where it was not timed.
        baseline_latency_s: vanilla's, timed right before this one on the same prompt in the same process.
        sections_s: latency by part: text, transformer, policy, scheduler, compression, vae.
        chunk_latency_s: from the prompt to the decoded frames of the first, second ... chunk.
        peak_memory_gib: most that the GPU's allocator gave out at once; None on a CPU.
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
    status: Status = "queued"
    error: str | None = None
    maker: str | None = None
    changed: str | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | str | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    latency_s: float | None = None
    baseline_latency_s: float | None = None
    sections_s: dict[str, float] = field(default_factory=dict)
    chunk_latency_s: list[float] = field(default_factory=list)
    peak_memory_gib: float | None = None
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
    """A folder of runs.

    Args:
        directory: of the runs; made when the first is saved.
        any_code: whether ``find`` also takes a video that other code made, if today's made none.
    """

    def __init__(self, directory: Path, any_code: bool = False) -> None:
        self.directory, self.any_code = directory, any_code

    def run_path(self, key: str) -> Path:
        return self.directory / "runs" / key

    def record_path(self, key: str) -> Path:
        return self.run_path(key) / "record.json"

    def video_path(self, key: str) -> Path:
        """Lossless, for metrics."""
        return self.run_path(key) / "video.mkv"

    def preview_path(self, key: str) -> Path:
        """Small, for people."""
        return self.run_path(key) / "video.mp4"

    def trace_path(self, key: str) -> Path:
        return self.run_path(key) / "trace.parquet"

    def find(self, key: str) -> Record | None:
        """A finished record whose files are all there, or None. A damaged record counts as none.

        Of the records that ``any_code`` allows beside the key's own, the last to be finished.
        """
        found = self.finished(key)
        if found is None and self.any_code:
            others = (self.finished(path.name) for path in self.run_path("").glob(f"{_video(key)}-*"))
            found = max(filter(None, others), key=lambda record: record.changed or "", default=None)
        return found

    def finished(self, key: str) -> Record | None:
        """As ``find``, of this key alone."""
        record = self.read(key)
        if record is None or record.status != "finished":
            return None
        return record if all((self.run_path(key) / name).is_file() for name in record.artifacts) else None

    def damage(self, record: Record) -> list[str]:
        """What is wrong with a finished record's files."""
        wrong = []
        for name, expected in record.artifacts.items():
            path = self.run_path(record.key) / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif sha256(path) != expected:
                wrong.append(f"{name} is not what was written")
        return wrong

    def read(self, key: str) -> Record | None:
        """A record in whatever state; None if there is none, or it is damaged, of another schema or key."""
        try:
            text = self.record_path(key).read_text(encoding="utf-8")
            record = Record(**json.loads(text))
            _FIELDS.validate_json(text, strict=True)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
            return None
        return record if record.schema_version == SCHEMA_VERSION and record.key == key else None

    def save(self, record: Record) -> Path:
        """Write the record; a finished one gets the checksums of the files that it has."""
        if record.status == "finished":
            files = (self.video_path(record.key), self.preview_path(record.key), self.trace_path(record.key))
            record.artifacts = {path.name: sha256(path) for path in files if path.is_file()}
        record.changed = datetime.now(UTC).isoformat(timespec="seconds")
        return self.amend(record)

    def amend(self, record: Record) -> Path:
        """Write a record of which only what is said of its video is new: date and checksums stay as they are."""
        path = self.record_path(record.key)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(_plain(asdict(record)), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return path

    @contextmanager
    def finishing(self, record: Record) -> Iterator[RecordStore]:
        """Give a store aside for the files of a running record; once the block ends without an error, they and the
        record, then finished, take the place of what is there.

        Everything is written before anything is replaced, so that a failure keeps an older video. Then its record gives
        way to one that says running, the files follow and the finished record comes last: a kill in between leaves a
        run to be made again, never a record of other files.
        """
        run = self.run_path(record.key)
        run.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=run, prefix=".", suffix=".partial") as folder:
            aside = RecordStore(Path(folder))
            yield aside
            record.status = "finished"
            aside.save(record)
            self.save(replace(record, status="running", artifacts={}))
            for path in (*map(aside.run_path(record.key).joinpath, record.artifacts), aside.record_path(record.key)):
                os.replace(path, run / path.name)
            sync_folder(run)

    def queue(self, record: Record) -> None:
        """Note that a video is wanted, where nothing is known of it yet and nobody is making it."""
        if self.read(record.key) is None:
            with self.claim(record.key, wait=False) as mine:
                if mine and self.read(record.key) is None:
                    self.save(record)

    def withdraw(self, key: str) -> None:
        """Forget that a video is wanted, where nobody has begun it."""
        if self._is_queued(key):
            with self.claim(key, wait=False) as mine:
                if mine and self._is_queued(key):
                    shutil.rmtree(self.run_path(key), ignore_errors=True)

    def _is_queued(self, key: str) -> bool:
        record = self.read(key)
        return record is not None and record.status == "queued"

    @contextmanager
    def claim(self, key: str, wait: bool) -> Iterator[bool]:
        """Be the only one to make a video. Gives False, at once, if another is at it and ``wait`` is not asked for."""
        self.run_path(key).mkdir(parents=True, exist_ok=True)
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=LOCK_POLL_S)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_claimed(self, key: str) -> bool:
        """Whether somebody is making the video now."""
        with self.claim(key, wait=False) as free:
            return not free

    def _lock(self, key: str) -> FileLock:
        return FileLock(self.run_path(key) / ".lock", is_singleton=False)

    def all(self) -> Iterator[Record]:
        """Every readable record of this schema, in order of key."""
        for path in sorted(self.run_path("").glob("*")):
            record = self.read(path.name)
            if record is not None:
                yield record


def store_of(job: Job) -> RecordStore:
    """Where the job's videos are."""
    return RecordStore(job.output_dir, job.any_code)


def todays_key(key: str) -> str:
    """The key that today's code would give the same video."""
    return with_code(key, code_hash())


def with_code(key: str, code: str) -> str:
    """The key that the code of this hash would give the same video."""
    return f"{_video(key)}-{code}"


def _video(key: str) -> str:
    """The part of a key that says which video it is, whatever code made it."""
    return key.partition("-")[0]


def maker() -> str:
    """This host and process."""
    return f"{platform.node()}:{os.getpid()}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def untimed(record: Record) -> dict[str, Any]:
    """The part of a record that is the same whenever and beside whatever the video is made."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.name not in TIMED}


_FIELDS = TypeAdapter(Record)  # their types, as annotated


def new_record(job: Job, method_name: str, method: Any, prompt: str) -> Record:
    """An empty record with its key."""
    identity = {
        "settings": job.settings,
        "method_class": type(method).__name__,
        "method_config": asdict(method),
        "prompt": prompt,
        "seed": job.seed,
        "weights": weights_id(job),
    }
    key = hashlib.sha256(json.dumps(_plain(identity), sort_keys=True).encode()).hexdigest()[:16]
    return Record(
        key=todays_key(key),
        model=job.model_name,
        setting=job.setting_name,
        method=method_name,
        method_config=asdict(method),
        prompt=prompt,
        seed=job.seed,
        settings=job.settings,
        weights=identity["weights"],
        code=code_hash(),
    )


@cache
def code_hash() -> str:
    """Of the library's and the methods' source: a change that could alter a video makes new records. Comments,
    docstrings and layout are left out, since they cannot."""
    digest = hashlib.sha256()
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(
                f"{path.relative_to(ROOT).as_posix()}\0{statements(path.read_text(encoding='utf-8'))}\0".encode()
            )
    return digest.hexdigest()[:16]


def statements(source: str) -> str:
    """Python source without comments, docstrings and its layout."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def weights_id(job: Job) -> str:
    """Which weights a job's videos are of: a hash, or that they are random and of which network."""
    if job.random_weights is None:
        return weights_hash(job.checkpoint)
    if job.checkpoint is not None:
        return f"random, sizes as {weights_hash(job.checkpoint)}"
    return "random, " + ", ".join(f"{name} {value}" for name, value in job.random_weights.items())


@cache
def weights_hash(checkpoint: Path) -> str:
    """Of the files that a checkpoint is loaded from, names and contents, wherever they lie.

    Raises BadInput for a directory that is no checkpoint, before anything large is read.
    """
    digest = hashlib.sha256()
    try:
        for name, path in sorted(loaded_files(checkpoint).items()):
            size = path.stat().st_size
            digest.update(f"{name} {size}\0".encode())
            digest.update(path.read_bytes() if size < LARGE_BYTES else _kept_sha256(path).encode())
    except (CheckpointError, OSError, ValueError) as error:
        raise BadInput(str(error)) from error
    return digest.hexdigest()[:16]


def _kept_sha256(path: Path) -> str:
    """Of a large file, remembered as long as its size and time of change stay: hashing 9 GB takes most of a minute."""
    status = path.stat()
    told_by = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    kept = cache_folder() / "sha256" / hashlib.sha256(told_by.encode()).hexdigest()
    try:
        return kept.read_text(encoding="utf-8")
    except OSError:
        found = sha256(path)
    with suppress(OSError), atomic_path(kept) as temporary:  # a cache that cannot be written costs time, no more
        temporary.write_text(found, encoding="utf-8")
    return found


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text and None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None
    return value
