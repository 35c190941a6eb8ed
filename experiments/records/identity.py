"""What tells one video from another: its key, of what was asked for and of the code that answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from experiments.records.code import code_hash, modules_of
from experiments.records.record import Record, plain
from experiments.records.weights import weights_id

if TYPE_CHECKING:  # the records are listed and checked without torch
    from experiments.job.job import Job
    from flowcache.method import Method

_RUN_BY = ("flowcache.sampler", "eval.latency")  # what all videos are generated and timed by


def new_record(job: Job, method_name: str, method: Method, prompt: str) -> Record:
    """An empty record with its key."""
    options, modules = method.described(), code_modules(job, method)
    identity = {
        "settings": job.settings,
        "method": options,
        "prompt": prompt,
        "seed": job.seed,
        "weights": weights_id(job),
    }
    video = hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:16]
    code = code_hash(modules)
    return Record(
        key=with_code(video, code),
        model=job.model_name,
        setting=job.setting_name,
        method=method_name,
        method_config=options,
        prompt=prompt,
        seed=job.seed,
        settings=job.settings,
        weights=identity["weights"],
        code=code,
        modules=modules,
    )


def code_modules(job: Job, method: Method) -> list[str]:
    """The modules whose code decides a video: of the model's loader, the method and its parts, and those of what it is
    compared with; with all that they import."""
    classes = [type(part) for whole in (method, job.baseline_method) for part in _parts(whole)]
    return sorted({*_RUN_BY, *modules_of(job.loader), *(each.__module__ for each in classes)})


def _parts(whole: Any) -> Iterator[Any]:
    """A dataclass and all that its fields hold, at any depth."""
    if is_dataclass(whole) and not isinstance(whole, type):
        yield whole
        for field in fields(whole):
            yield from _parts(getattr(whole, field.name))
    elif isinstance(whole, (dict, list, tuple)):
        for value in whole.values() if isinstance(whole, dict) else whole:
            yield from _parts(value)


def todays_code(record: Record) -> str:
    """The hash of a record's code as it is today."""
    return code_hash(record.modules)


def todays_key(record: Record) -> str:
    """The key that today's code would give the same video."""
    return with_code(record.key, todays_code(record))


def with_code(key: str, code: str) -> str:
    """The key that the code of this hash would give the same video."""
    return f"{video_of(key)}-{code}"


def video_of(key: str) -> str:
    """The part of a key that says which video it is, whatever code made it."""
    return key.partition("-")[0]
