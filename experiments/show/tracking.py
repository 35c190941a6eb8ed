"""One W&B run a job: config, metrics of every row, tables, figures, a video, artifacts. Offline unless asked otherwise.

The records are the result and this is a view of them, so that nothing here can fail a job: what goes wrong is said, in
one line.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.job.job import Job
from experiments.records import Record, RecordStore, new_record, store_of
from experiments.show import logged
from experiments.show.summary import STREAMING, summarise

if TYPE_CHECKING:  # what draws and counts is imported late: it takes a second, and a job with nothing new does without
    import pandas as pd
    from matplotlib.figure import Figure

_TIMES = ("latency_s", "baseline_latency_s", *STREAMING)
_VIDEO_COLUMNS = ("key", "prompt", *_TIMES, "flops", "baseline_flops", "computed_fraction")


def track(
    job: Job, records: Sequence[Record], group: str | None = None, say: Callable[[str], None] = print
) -> str | None:
    """Log a job's finished records as ``job.wandb`` says, unless that was done; returns the run's folder, or None.

    Args:
        group: of the run, where the configuration names none: the sweep that it is part of.
        say: told what went wrong, if anything did.
    """
    if job.wandb["mode"] == "disabled" or not records:
        return None
    folder = logged.folder_of(job, records, group)
    if folder is not None:
        return folder
    try:
        folder = _log(job, records, job.wandb["group"] or group or multirun())
        logged.remember(job, records, group, folder)
        return folder
    except Exception as error:  # of any kind: see above
        say(
            f"W&B: not logged ({type(error).__name__}: {' '.join(str(error).split())}); the records are whole, the "
            "same command logs them again, wandb.mode=disabled leaves W&B out"
        )
        return None


def multirun() -> str | None:
    """A group for the jobs of a Hydra multirun (-m), named after its folder; None outside one."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return f"multirun {Path(HydraConfig.get().sweep.dir).name}"
    return None


def _log(job: Job, records: Sequence[Record], group: str | None) -> str:
    import wandb  # may be missing

    from experiments.records.collect import read_trace

    job.output_dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=job.wandb["project"],
        mode=job.wandb["mode"],
        dir=str(job.output_dir),
        name=f"{job.model_name}-{job.setting_name}-{job.label}",
        group=group,
        tags=[job.model_name, job.setting_name, job.method_name, *job.wandb["tags"]],
        config=_config(job, records[0]),
        settings=wandb.Settings(silent=True, console="off"),
    )
    try:
        store = store_of(job)
        run.define_metric("row/index")
        run.define_metric("row/*", step_metric="row/index")
        for row in row_metrics([read_trace(store, record) for record in records]):
            run.log(row)
        with tempfile.TemporaryDirectory() as folder:
            run.log({**_tables(wandb, records), **_media(wandb, job, store, records[0], Path(folder))})
        run.summary.update({key: value for key, value in summarise(records).items() if value == value})
        run.log_artifact(_artifact(wandb, job, store, records))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return run.dir


def _config(job: Job, record: Record) -> dict[str, Any]:
    return {
        **job.settings,
        "method": job.method_name,
        "method_config": job.method.described(),
        "seed": job.seed,
        "prompts": list(job.prompts),
        "workers": job.workers,
        "threads": job.threads,
        "weights": record.weights,
        "code": record.code,
        "environment": record.environment,
    }


def row_metrics(traces: Sequence[pd.DataFrame]) -> list[dict[str, float]]:
    """One dictionary a row of the sampler, means over the videos: active and computed chunks, GFLOPs of denoising, the
    chunks' mean distance and accumulated distance where they were measured, and what the KV cache holds, in tokens and
    in MiB."""
    import pandas as pd

    entries = pd.concat(traces, keys=range(len(traces)), names=["video"]).reset_index("video")
    entries["computed"] = entries["action"] == "compute"
    measured = ["distance", "accumulated"]  # None all through where a method measures nothing
    entries["kv_bytes"] = entries.get("kv_bytes", float("nan"))  # older traces do not say
    entries[measured] = entries[measured].astype(float)
    by_video = entries.groupby(["row", "video"]).agg(
        active_chunks=("chunk", "size"),
        computed_chunks=("computed", "sum"),
        gflops=("flops", lambda flops: flops.sum() / 1e9),
        distance=("distance", "mean"),
        accumulated=("accumulated", "mean"),
        kv_tokens=("kv_tokens", "max"),
        kv_mib=("kv_bytes", lambda held: held.max() / 2**20),
    )
    means = by_video.astype(float).groupby("row").mean()
    return [
        {"row/index": row, **{f"row/{key}": value for key, value in values.items() if value == value}}
        for row, values in means.to_dict("index").items()
    ]


def _tables(wandb: Any, records: Sequence[Record]) -> dict[str, Any]:
    """All videos, and the job's figures with their intervals."""
    metrics = sorted({name for record in records for name in record.metrics})
    videos = [
        [*(getattr(record, column) for column in _VIDEO_COLUMNS), *(_number(record.metrics.get(m)) for m in metrics)]
        for record in records
    ]
    figures = [[key, float(value)] for key, value in summarise(records).items()]
    return {
        "tables/videos": wandb.Table(columns=[*_VIDEO_COLUMNS, *metrics], data=videos),
        "tables/summary": wandb.Table(columns=["figure", "value"], data=figures),
    }


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


def _media(wandb: Any, job: Job, store: RecordStore, record: Record, folder: Path) -> dict[str, Any]:
    """Of the first video: where it computed, its frames beside the baseline's, and both side by side as a video."""
    import numpy as np

    from eval.video_io import read_lossless, write_mp4
    from experiments.records.collect import read_trace
    from experiments.show.frame_strips import common_gain, difference, draw_frames
    from experiments.show.reuse_map import draw_reuse_map

    reference = store.find(new_record(job, job.baseline_name, job.baseline_method, record.prompt).key)
    shown = {job.baseline_name: reference} if reference is not None and reference.key != record.key else {}
    shown[job.method_name] = record
    traces = {name: read_trace(store, each) for name, each in shown.items()}
    media = {"figures/reuse_map": _image(wandb, draw_reuse_map(traces, repr(record.prompt)), folder / "map.png")}
    if len(shown) == 1:
        return {**media, "video": wandb.Video(str(store.preview_path(record.key)), record.prompt, format="mp4")}
    random_weights = job.random_weights is not None
    original, video = (read_lossless(store.video_path(each.key), random_weights) for each in shown.values())
    compared = {job.method_name: video}
    strips = draw_frames(original, compared, len(record.chunk_latency_s), repr(record.prompt), job.baseline_name)
    media["figures/frames"] = _image(wandb, strips, folder / "frames.png")
    gain = common_gain({job.method_name: video}, original)
    beside = np.concatenate([original, video, difference(video, original, gain)], axis=2)
    write_mp4(folder / "beside.mp4", beside, job.fps, random_weights=random_weights)
    caption = f"{job.baseline_name}, {job.method_name}, difference x {gain}: {record.prompt}"
    return {**media, "video": wandb.Video(str(folder / "beside.mp4"), caption, format="mp4")}


def _image(wandb: Any, figure: Figure, path: Path) -> Any:
    from matplotlib import pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return wandb.Image(str(path))


def _artifact(wandb: Any, job: Job, store: RecordStore, records: Sequence[Record]) -> Any:
    """Records and traces of all videos; the files are named, not copied."""
    name = f"{job.model_name}-{job.setting_name}-{job.method_name}-{records[0].key}"
    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]+", "-", name), type="records")  # "every_k, random weights"
    for record in records:
        for path in (store.record_path(record.key), store.trace_path(record.key)):
            artifact.add_file(str(path), f"{path.parent.name}/{path.name}", policy="immutable", skip_cache=True)
    return artifact
