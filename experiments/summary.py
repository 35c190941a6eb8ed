"""What a finished job prints and logs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.statistics import mean_and_interval, median_and_interval, share_and_interval
from experiments.job import Job
from experiments.records import Record, RecordStore

PFLOP = 1e15
CAPTION_FLAGS = ("colour_right", "shape_right", "motion_right", "right")


def finite(records: Sequence[Record], metric: str) -> list[float]:
    """A metric's numbers; identical videos (infinite PSNR) and missing values are left out."""
    values = [r.metrics.get(metric) for r in records]
    return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def summarise(records: Sequence[Record]) -> dict[str, float]:
    """A job's figures in one flat dictionary: the table's and W&B's."""
    summary: dict[str, float] = {"n": len(records)}
    for metric in sorted({name for r in records for name in r.metrics}):
        values = finite(records, metric)
        if values:
            summary[metric], summary[f"{metric}_ci95"] = mean_and_interval(values)
    identical = [r.metrics["psnr"] == "inf" or r.metrics["psnr"] == math.inf for r in records if "psnr" in r.metrics]
    if any(identical):
        summary["identical_videos"] = sum(identical)
    summary["pflops"] = statistics.mean(r.flops for r in records) / PFLOP
    shares = [r.flops / r.baseline_flops for r in records if r.baseline_flops]
    if shares:
        summary["flops_share"] = statistics.mean(shares)
    summary["computed_fraction"] = statistics.mean(r.computed_fraction for r in records)
    latencies = [r.latency_s for r in records if r.latency_s]
    if latencies:
        summary["latency_s"] = statistics.median(latencies)
    paired = [r for r in records if r.baseline_latency_s and r.latency_s]
    if paired:
        ratios = [r.baseline_latency_s / r.latency_s for r in paired]
        efficiencies = [ratio * r.flops / r.baseline_flops for ratio, r in zip(ratios, paired, strict=True)]
        summary |= _with_ends("speedup", median_and_interval(ratios))
        summary["speedup_pairs"] = len(ratios)
        summary["efficiency"] = statistics.median(efficiencies)
    for section in ("policy", "compression"):
        shares = [r.sections_s[section] / r.latency_s for r in records if r.latency_s and section in r.sections_s]
        if shares:
            summary[f"{section}_share"] = statistics.median(shares)
    for flag in CAPTION_FLAGS:
        seen = [bool(r.caption[flag]) for r in records if r.caption]
        if seen:
            summary |= _with_ends(f"caption_{flag}", share_and_interval(seen))
    summary["kv_mib"] = max(r.kv_bytes_used_peak for r in records) / 2**20
    return summary


def _with_ends(name: str, value_and_ends: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), value_and_ends, strict=True))


_ROWS = (
    ("executed compute, PFLOPs a video", "pflops", "{:.3g}"),
    ("compute left, of vanilla's FLOPs", "flops_share", "{:.3f}"),
    ("chunk steps computed", "computed_fraction", "{:.3f}"),
    ("latency, s (median)", "latency_s", "{:.2f}"),
    ("speed-up (median of pairs)", "speedup", "{:.2f}x"),
    ("efficiency (speed-up x compute left)", "efficiency", "{:.2f}"),
    ("time spent deciding", "policy_share", "{:.1%}"),
    ("time spent compressing", "compression_share", "{:.1%}"),
    ("PSNR, dB", "psnr", "{:.2f}"),
    ("videos identical to vanilla's", "identical_videos", "{:.0f}"),
    ("SSIM", "ssim", "{:.4f}"),
    ("LPIPS (alex)", "lpips", "{:.4f}"),
    ("caption: colour right", "caption_colour_right", "{:.0%}"),
    ("caption: shape right", "caption_shape_right", "{:.0%}"),
    ("caption: motion right", "caption_motion_right", "{:.0%}"),
    ("caption: all three right", "caption_right", "{:.0%}"),
    ("KV cache in use, MiB", "kv_mib", "{:.2f}"),
)


def print_summary(job: Job, records: Sequence[Record], store: RecordStore, console: Console) -> None:
    """The job's table, what is missing and why, and where everything is."""
    summary = summarise(records)
    table = Table(
        title=f"{job.model_name} / {job.setting_name} / {job.method_name}: {len(records)} videos, measured here"
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("spread")
    for title, key, form in _ROWS:
        if key in summary:
            interval = summary.get(f"{key}_ci95", math.nan)
            spread = "" if math.isnan(interval) else f"±{interval:.3g} (95 %)"
            if key == "speedup":
                ends = f"{summary['speedup_low']:.2f}-{summary['speedup_high']:.2f}"
                spread = f"{ends} (95 %, {summary['speedup_pairs']} pairs)"
            elif key.startswith("caption"):
                spread = f"{summary[f'{key}_low']:.0%}-{summary[f'{key}_high']:.0%} (95 %)"
            table.add_row(title, form.format(summary[key]), spread)
    console.print(table)
    for name, reason in sorted({(n, text) for r in records for n, text in r.notes.items()}):
        console.print(f"{name}: n/a ({reason})", markup=False)  # a reason may quote a prompt
    first = records[0]
    console.print(f"first video  {store.preview_path(first.key)}", markup=False)
    console.print(f"all videos, traces, records  {store.directory}/{{videos,traces,records}}", markup=False)


def log_to_wandb(job: Job, records: Sequence[Record], store: RecordStore, settings: dict[str, Any]) -> str | None:
    """One W&B run with summary, a table of all videos and the first video. Returns where it is; None if disabled."""
    if settings["mode"] == "disabled":
        return None
    import wandb

    job.output_dir.mkdir(parents=True, exist_ok=True)
    started = wandb.init(
        project=settings["project"],
        mode=settings["mode"],
        dir=str(job.output_dir),
        name=f"{job.model_name}-{job.setting_name}-{job.method_name}",
        config={**job.settings, "method": job.method_name, "method_config": records[0].method_config, "seed": job.seed},
        settings=wandb.Settings(silent=True, console="off"),
    )
    columns = ["key", "prompt", "latency_s", "flops", "computed_fraction", *sorted(records[0].metrics)]
    rows = [
        [r.key, r.prompt, r.latency_s, r.flops, r.computed_fraction, *(r.metrics.get(m) for m in columns[5:])]
        for r in records
    ]
    rows = [[str(v) if v == "inf" else v for v in row] for row in rows]
    summary = {k: v for k, v in summarise(records).items() if v == v}
    video = wandb.Video(str(store.preview_path(records[0].key)), caption=records[0].prompt, format="mp4")
    with started as run:  # also a run that fails is finished, as failed
        run.log({**summary, "videos": wandb.Table(columns=columns, data=rows), "first_video": video})
        return run.dir
