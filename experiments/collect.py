"""Records as one data frame, grouped for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from experiments.errors import BadInput
from experiments.job import Job
from experiments.records import Record, RecordStore, code_hash, weights_id

_ENVIRONMENT = ("cpu", "gpu", "threads", "workers", "packages", "revision")


def canonical(options: dict[str, Any]) -> str:
    """A method's options as text, equal for equal options."""
    return json.dumps(options, sort_keys=True)


def collect(job: Job) -> pd.DataFrame:
    """One row a finished video: method, its options, prompt, metrics, compute, latency.

    Only records that agree with the job in model, setting, weights and today's library code count: one table shows one
    program. Raises BadInput if there are none.
    """
    wanted = (job.settings, weights_id(job), code_hash())
    records = [
        record
        for record in RecordStore(job.output_dir).all()
        if record.status == "done" and (record.settings, record.weights, record.code) == wanted
    ]
    if not records:
        raise BadInput(
            f"no finished records of model={job.model_name} setting={job.setting_name} with this code and these "
            f"weights under {job.output_dir}; make them first, for example "
            f"python run.py -m model={job.model_name} method=vanilla,flowcache_fast"
        )
    return video_frame(records)


def video_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: as ``collect``, of any records."""
    rows = []
    for record in records:
        metrics = {k: float("inf") if v == "inf" else v for k, v in record.metrics.items()}
        caption = {f"caption_{k}": v for k, v in (record.caption or {}).items()}
        rows.append(
            {
                "method": record.method,
                "prompt": record.prompt,
                "seed": record.seed,
                "computed_fraction": record.computed_fraction,
                "flops": record.flops,
                "flops_share": record.flops / record.baseline_flops if record.baseline_flops else None,
                "latency_s": record.latency_s,
                "baseline_latency_s": record.baseline_latency_s,
                "policy_s": record.sections_s.get("policy"),
                "options": canonical(record.method_config),
                **record.method_config,
                **metrics,
                **caption,
                "weights": record.weights,
                "code": record.code,
                **{f"environment_{k}": record.environment.get(k) for k in _ENVIRONMENT},
            }
        )
    return pd.DataFrame(rows)
