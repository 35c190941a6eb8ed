"""What tells one video from another: its key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from experiments.job.job import Job
from experiments.records.code import code_hash
from experiments.records.record import Record, plain
from experiments.records.weights import weights_id


def todays_key(key: str) -> str:
    """The key that today's code would give the same video."""
    return with_code(key, code_hash())


def with_code(key: str, code: str) -> str:
    """The key that the code of this hash would give the same video."""
    return f"{video_of(key)}-{code}"


def video_of(key: str) -> str:
    """The part of a key that says which video it is, whatever code made it."""
    return key.partition("-")[0]


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
    key = hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:16]
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
