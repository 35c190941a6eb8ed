"""Records as one data frame, grouped for tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import RANDOM_MARK, Job
from experiments.job.method import make_method
from experiments.job.paths import shown
from experiments.records import (
    Record,
    RecordStore,
    new_record,
    sha256,
    store_of,
    todays_code,
    todays_key,
    weights_id,
)
from experiments.records.metrics import current
from experiments.records.timings import commonest_way, timed, ways

if TYPE_CHECKING:  # imported late: a run's summary does without
    import pandas as pd

_ENVIRONMENT = ("cpu", "gpu", "threads", "workers", "packages", "revision", "load_average_1min", "cores")


def canonical(options: dict[str, Any]) -> str:
    """A method's options as text, equal for equal options."""
    return json.dumps(options, sort_keys=True)


def collect(job: Job) -> pd.DataFrame:
    """One row a finished video: method, its options, prompt, metrics, why they are missing, compute, latency.

    Only records that agree with the job in model, setting, weights and today's code of their own method count: one
    table shows one program. With ``any_code`` other code's count too, where today's has none; of metrics only today's
    code's ever do. Raises BadInput if there are none.
    """
    store, wanted = store_of(job), (job.settings, weights_id(job))
    agreeing = (record for record in store.all() if (record.settings, record.weights) == wanted)
    keys = dict.fromkeys(todays_key(record) for record in agreeing)
    records = [current(record) for record in map(store.find, keys) if record is not None]
    if not records:
        raise BadInput(
            f"no finished records of model={job.model_name} setting={job.setting_name} with this code and these "
            f"weights under {shown(job.output_dir)}; make them first, for example "
            f"python run.py -m model={job.model_name} method=vanilla,flowcache_fast"
        )
    return video_frame(records)


def at_defaults(frame: pd.DataFrame, job: Job, method: str) -> pd.DataFrame:
    """Videos with the options that a method's YAML and tuned values give it, of a frame of ``collect``.

    Whatever name they were made under: one of the same options is the same video, and is made once.
    """
    options = _defaults(job.model_name, job.setting_name, method)
    return frame[(frame["options"] == options) & ~frame["method"].str.endswith(RANDOM_MARK)]


@cache  # composing takes a tenth of a second
def _defaults(model: str, setting: str, method: str) -> str:
    config = compose_config([f"model={model}", f"setting={setting}", f"method={method}"])
    return canonical(make_method(config).described())


def job_options(job: Job) -> str:
    """Of a job's method, as the frames of ``collect`` have them."""
    return canonical(new_record(job, job.method_name, job.method, job.prompts[0]).method_config)


def default_options(job: Job, method: str) -> dict[str, Any]:
    """What a method's YAML and tuned values give it in a job's model and setting, by dotted name."""
    return flat(json.loads(_defaults(job.model_name, job.setting_name, method)))


def video_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: as ``collect``, of any records.

    Times are those of the one way that most were timed in, so that no median mixes two; of a record that was timed, but
    not so, ``timed_otherwise`` names the ways.
    """
    import pandas as pd

    records, rows = list(records), []
    way = commonest_way(records)
    for full in records:
        record = timed(full, way)
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
                "latency_first_chunk_s": record.latency_first_chunk_s,
                "fps": record.fps,
                "timed_otherwise": "; ".join(sorted(ways(full))) or None if record.latency_s is None else None,
                "policy_s": record.sections_s.get("policy"),
                "options": canonical(record.method_config),
                **flat(record.method_config),
                **metrics,
                **caption,
                **reasons,
                "weights": record.weights,
                "code": record.code,
                "is_todays_code": record.code == todays_code(record),
                **{f"environment_{k}": record.environment.get(k) for k in _ENVIRONMENT},
            }
        )
    return pd.DataFrame(rows)


def described(job: Job) -> dict[str, Any]:
    """Method, seed and all options of a job, by dotted name."""
    return {"method": job.method_name, "seed": job.seed, **flat({**job.settings, **job.method.described()})}


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    leaves: dict[str, Any] = {}
    for name, value in options.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def finished(job: Job) -> list[Record]:
    """The finished records of a job's prompts, each once."""
    store = store_of(job)
    keys = dict.fromkeys(new_record(job, job.method_name, job.method, prompt).key for prompt in job.prompts)
    found = map(store.find, keys)
    return [current(record) for record in found if record is not None]


def read_trace(store: RecordStore, record: Record) -> pd.DataFrame:
    """A finished record's trace, a row an entry. Raises BadInput where its file is not the one that was written."""
    import pandas as pd

    path = store.trace_path(record.key)
    if not path.is_file() or sha256(path) != record.artifacts.get(path.name):
        raise BadInput(
            f"{path} is missing or damaged; remove the run with python -m experiments.records prune --yes, and make it "
            f"again with the run.py command that made it ({record.method}: {record.prompt!r})"
        )
    return pd.read_parquet(path)
