"""Which weights a video is of."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.atomic import atomic_path
from eval.cache import cache_folder
from experiments.job.errors import BadInput
from experiments.records.checksum import sha256

if TYPE_CHECKING:  # the records are listed and checked without torch
    from experiments.job.job import Job

LARGE_BYTES = 64 * 2**20  # files of weights from which on a hash is worth remembering


def weights_id(job: Job) -> str:
    """Which weights a job's videos are of: a hash, or that they are random and of which network."""
    if job.random_weights is None:
        return weights_hash(job.checkpoint, tuple(job.files.items()), tuple(job.loading.items()))
    if job.checkpoint is not None:
        return f"random, sizes as {weights_hash(job.checkpoint)}"
    return "random, " + ", ".join(f"{name} {value}" for name, value in job.random_weights.items())


@cache
def weights_hash(
    checkpoint: Path, files: tuple[tuple[str, Path], ...] = (), loading: tuple[tuple[str, Any], ...] = ()
) -> str:
    """Of the files that a checkpoint is loaded from, names and contents, wherever they lie, and of how.

    Args:
        files, loading: see Job, of which they are items.

    Raises BadInput for a directory that is no checkpoint, before anything large is read.
    """
    from flowcache.checkpoints import loaded_files
    from flowcache.models.checkpoint import CheckpointError

    digest = hashlib.sha256()
    try:
        for name, path in sorted(loaded_files(checkpoint, **dict(files)).items()):
            size = path.stat().st_size
            digest.update(f"{name} {size}\0".encode())
            digest.update(path.read_bytes() if size < LARGE_BYTES else _kept_sha256(path).encode())
        for option in loading:
            digest.update(repr(option).encode())
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
