"""Records as one data frame, grouped for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

import pandas as pd

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import Job, make_method
from experiments.records import Record, RecordStore, new_record, sha256, store_of, todays_key, weights_id

_ENVIRONMENT = ("cpu", "gpu", "threads", "workers", "packages", "revision", "load_average_1min", "cores")


def canonical(options: dict[str, Any]) -> str:
    """A method's options as text, equal for equal options."""
    return json.dumps(options, sort_keys=True)


def collect(job: Job) -> pd.DataFrame:
    """One row a finished video: method, its options, prompt, metrics, why they are missing, compute, latency.

    Only records that agree with the job in model, setting, weights and today's library code count: one table shows one
    program. With ``any_code`` other code's count too, where today's has none. Raises BadInput if there are none.
    """
    store, wanted = store_of(job), (job.settings, weights_id(job))
    agreeing = (record for record in store.all() if (record.settings, record.weights) == wanted)
    keys = dict.fromkeys(todays_key(record.key) for record in agreeing)
    records = [record for record in map(store.find, keys) if record is not None]
    if not records:
        raise BadInput(
            f"no finished records of model={job.model_name} setting={job.setting_name} with this code and these "
            f"weights under {job.output_dir}; make them first, for example "
            f"python run.py -m model={job.model_name} method=vanilla,flowcache_fast"
        )
    return video_frame(records)


def at_defaults(frame: pd.DataFrame, job: Job, method: str) -> pd.DataFrame:
    """A method's videos with the options that its YAML and tuned values give it, of a frame of ``collect``."""
    options = _defaults(job.model_name, job.setting_name, method)
    return frame[(frame["method"] == method) & (frame["options"] == options)]


@cache  # composing takes a tenth of a second
def _defaults(model: str, setting: str, method: str) -> str:
    config = compose_config([f"model={model}", f"setting={setting}", f"method={method}"])
    return canonical(asdict(make_method(config.method)))


def video_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: as ``collect``, of any records."""
    rows = []
    for record in records:
        metrics = {k: float("inf") if v == "inf" else v for k, v in record.metrics.items()}
        caption = {f"caption_{k}": v for k, v in (record.caption or {}).items()}
        reasons = {f"{k}_reason": v for k, v in record.notes.items()}
        rows.append(
            {
                "key": record.key,
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
                **reasons,
                "weights": record.weights,
                "code": record.code,
                **{f"environment_{k}": record.environment.get(k) for k in _ENVIRONMENT},
            }
        )
    return pd.DataFrame(rows)


def described(job: Job) -> dict[str, Any]:
    """Method and all options of a job, by dotted name."""
    return {"method": job.method_name, **flat({**job.settings, **asdict(job.method)})}


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    leaves: dict[str, Any] = {}
    for name, value in options.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def finished(job: Job) -> list[Record]:
    """The finished records of a job's prompts."""
    store = store_of(job)
    found = (store.find(new_record(job, job.method_name, job.method, prompt).key) for prompt in job.prompts)
    return [record for record in found if record is not None]


def read_trace(store: RecordStore, record: Record) -> pd.DataFrame:
    """A finished record's trace, a row an entry. Raises BadInput where its file is not the one that was written."""
    path = store.trace_path(record.key)
    if not path.is_file() or sha256(path) != record.artifacts.get(path.name):
        raise BadInput(
            f"{path} is missing or damaged; remove the run with python -m experiments.records prune --yes, and make it "
            f"again with the run.py command that made it ({record.method}: {record.prompt!r})"
        )
    return pd.read_parquet(path)
