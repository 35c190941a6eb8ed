"""What W&B was given before, so that a job in which nothing is new makes no new run of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.atomic import atomic_path
from experiments.job.job import Job
from experiments.records import Record


def folder_of(job: Job, records: Sequence[Record], group: str | None) -> str | None:
    """The folder of the W&B run that holds these very records, logged as the job asks; None if there is none."""
    try:
        folder = _note(job, records, group).read_text(encoding="utf-8")
    except OSError:
        return None
    return folder if Path(folder).is_dir() else None


def remember(job: Job, records: Sequence[Record], group: str | None, folder: str) -> None:
    """Note which folder a W&B run of these records has."""
    with atomic_path(_note(job, records, group)) as temporary:
        temporary.write_text(folder, encoding="utf-8")


def _note(job: Job, records: Sequence[Record], group: str | None) -> Path:
    """Beside W&B's own folders, so that it goes when they are removed."""
    told_by = [job.wandb, group, job.method_name, [asdict(record) for record in records]]
    name = hashlib.sha256(json.dumps(told_by, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return job.output_dir / "wandb" / "logged" / name
