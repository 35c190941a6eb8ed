"""Finished records that no model was run for: what tables and figures are made of, with numbers that a test knows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.job.cli import compose_config
from experiments.job.job import Job, make_job
from experiments.records import Record, RecordStore, new_record
from experiments.records.metrics import MODULES, metric_code

ENVIRONMENT = {"cpu": "a CPU", "threads": 1, "workers": 1, "packages": {"torch": "2.13.0"}}
VANILLA_FLOPS = 10**12


def made(job: Job, prompt: str, share: float = 1.0, **values: Any) -> Record:
    """Save and return a finished record of a job's prompt that left ``share`` of vanilla's FLOPs."""
    record = new_record(job, job.method_name, job.method, prompt)
    record.status = "finished"
    record.environment, record.computed_fraction = ENVIRONMENT, share
    record.metrics_code = {name: metric_code(name) for name in MODULES}
    record.flops, record.baseline_flops = int(share * VANILLA_FLOPS), VANILLA_FLOPS
    for name, value in values.items():
        setattr(record, name, value)
    RecordStore(job.output_dir).save(record)
    return record


def job_of(output_dir, *overrides: str) -> Job:
    return make_job(compose_config([f"output_dir={output_dir}", *overrides]))


def trace(
    num_chunks: int = 2,
    num_steps: int = 4,
    reused: tuple[tuple[int, int], ...] = (),
    forecast: tuple[tuple[int, int], ...] = (),
) -> pd.DataFrame:
    """Chunks that start two rows after each other; ``reused`` and ``forecast`` are (chunk, step) pairs."""
    entries = [
        {
            "row": 2 * chunk + step,
            "chunk": chunk,
            "step": step,
            "t": step / num_steps,
            "action": "reuse" if (chunk, step) in reused else "forecast" if (chunk, step) in forecast else "compute",
            "distance": 0.1 * step if step else None,
            "accumulated": 0.1 * step,
            "flops": 0 if (chunk, step) in (*reused, *forecast) else 10**9,
            "kv_tokens": 96 * (chunk + 1),
            "kv_bytes": 2**20 * (chunk + 1),
        }
        for chunk in range(num_chunks)
        for step in range(num_steps)
    ]
    return pd.DataFrame(entries)
