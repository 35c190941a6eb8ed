"""What a finished job prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from eval.latency import speedup
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
    """A job's figures in one flat dictionary: the tables' and W&B's."""
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
        summary["flops_share"], summary["flops_share_ci95"] = mean_and_interval(shares)
    summary["computed_fraction"] = statistics.mean(r.computed_fraction for r in records)
    latencies = [r.latency_s for r in records if r.latency_s]
    if latencies:
        summary["latency_s"] = statistics.median(latencies)
    paired = [r for r in records if r.baseline_latency_s and r.latency_s]
    if paired:
        times = ([r.latency_s for r in paired], [r.baseline_latency_s for r in paired])
        gain = speedup(*times, [r.flops / r.baseline_flops for r in paired])
        summary |= _with_ends("speedup", (gain.median, gain.low, gain.high))
        summary |= {"speedup_pairs": gain.pairs, "efficiency": gain.efficiency}
    for section in ("policy", "compression"):
        shares = [r.sections_s[section] / r.latency_s for r in records if r.latency_s and section in r.sections_s]
        if shares:
            summary |= _with_ends(f"{section}_share", median_and_interval(shares))
    for flag in CAPTION_FLAGS:
        seen = [bool(r.caption[flag]) for r in records if r.caption]
        if seen:
            summary |= _with_ends(f"caption_{flag}", share_and_interval(seen))
    summary["kv_mib"], summary["kv_mib_ci95"] = mean_and_interval([r.kv_bytes_used_peak / 2**20 for r in records])
    return summary


def _with_ends(name: str, value_and_ends: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), value_and_ends, strict=True))


_ROWS = (
    ("executed compute, PFLOPs a video", "pflops", "{:.3g}"),
    ("compute left, of baseline's FLOPs", "flops_share", "{:.3f}"),
    ("chunk steps computed", "computed_fraction", "{:.3f}"),
    ("latency, s (median)", "latency_s", "{:.2f}"),
    ("speed-up (median of pairs)", "speedup", "{:.2f}x"),
    ("efficiency (speed-up x compute left)", "efficiency", "{:.2f}"),
    ("time spent deciding", "policy_share", "{:.1%}"),
    ("time spent compressing", "compression_share", "{:.1%}"),
    ("PSNR, dB", "psnr", "{:.2f}"),
    ("videos identical to baseline's", "identical_videos", "{:.0f}"),
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
    console.print(f"all videos, traces, records  {store.directory}/runs", markup=False)
