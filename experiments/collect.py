"""Records as one data frame, grouped for tables and figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.errors import BadInput
from experiments.records import RecordStore, code_hash


def collect(directory: Path, model: str, setting: str, any_code: bool = False) -> pd.DataFrame:
    """One row a finished video: method, its options, prompt, metrics, compute, latency.

    Only records of today's library code count unless ``any_code``: one table shows one code.
    Raises BadInput if there are none.
    """
    rows = []
    for record in RecordStore(directory).all():
        wanted = record.status == "done" and record.model == model and record.setting == setting
        if not wanted or not (any_code or record.code == code_hash()):
            continue
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
                **record.method_config,
                **metrics,
                **caption,
                "weights": record.weights,
                "code": record.code,
                **{f"environment_{k}": record.environment.get(k) for k in ("cpu", "gpu", "threads", "revision")},
            }
        )
    if not rows:
        raise BadInput(
            f"no finished records of model={model} setting={setting} with this code under {directory}; "
            f"make them first, for example python run.py -m model={model} method=vanilla,flowcache_fast"
        )
    return pd.DataFrame(rows)
