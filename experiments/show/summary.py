"""What a finished job prints."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from eval.speedup import speedup
from eval.statistics import mean_and_interval, median_and_interval, share_and_interval
from experiments.job.job import Job
from experiments.job.paths import shown
from experiments.job.units import counted, flop_unit
from experiments.records import Record, RecordStore
from experiments.records.collect import flat
from experiments.records.load import is_busy, told_load
from experiments.show.attention import FLAG, another_video, told_another_video
from experiments.show.kv_memory import KV_USES

PFLOP = 1e15
SEAMS = ("seam_ratio", "position_jump_pixels")  # of eval.caption_score: how smooth chunk borders are
STREAMING = ("latency_first_chunk_s", "fps")  # of a record: how soon frames come, and how fast
CAPTION_FLAGS = ("colour_right", "shape_right", "motion_right", "right")


def finite(records: Sequence[Record], metric: str) -> list[float]:
    """A metric's numbers; identical videos (infinite PSNR) and missing values are left out."""
    values = [r.metrics.get(metric) for r in records]
    return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def summarise(records: Sequence[Record]) -> dict[str, float]:
    """A job's figures in one flat dictionary: the tables' and W&B's.

    A mean comes with ``_ci95``, the half-width of its 95 % interval, a median or share with its interval's ends
    (``_low``, ``_high``), each with how many videos it is over (``_n``).
    """
    summary: dict[str, float] = {"n": len(records)}
    for metric in sorted({name for r in records for name in r.metrics}):
        summary |= _mean(metric, finite(records, metric))
    identical = [r.metrics["psnr"] == "inf" or r.metrics["psnr"] == math.inf for r in records if "psnr" in r.metrics]
    if any(identical):
        summary["identical_videos"] = sum(identical)
    summary |= _mean("pflops", [r.flops / PFLOP for r in records])
    summary |= _mean("flops_share", [r.flops / r.baseline_flops for r in records if r.baseline_flops])
    summary |= _mean("computed_fraction", [r.computed_fraction for r in records])
    for name in ("latency_s", *STREAMING):
        summary |= _median(name, [value for r in records if (value := getattr(r, name))])
    paired = [r for r in records if r.baseline_latency_s and r.latency_s]
    if paired:
        times = ([r.latency_s for r in paired], [r.baseline_latency_s for r in paired])
        gain = speedup(*times, [r.flops / r.baseline_flops for r in paired])
        summary |= _with_ends("speedup", (gain.median, gain.low, gain.high), gain.pairs)
        summary |= _with_ends("efficiency", gain.efficiency, gain.pairs)
    for section in ("policy", "compression"):
        shares = [r.sections_s[section] / r.latency_s for r in records if r.latency_s and section in r.sections_s]
        summary |= _median(f"{section}_share", shares)
    for flag in CAPTION_FLAGS:
        seen = [bool(r.caption[flag]) for r in records if r.caption]
        if seen:
            summary |= _with_ends(f"caption_{flag}", share_and_interval(seen), len(seen))
    for seam in SEAMS:
        summary |= _mean(seam, [r.caption[seam] for r in records if r.caption and r.caption.get(seam) is not None])
    summary |= _mean("kv_mib", [r.kv_bytes_used_peak / 2**20 for r in records])
    summary |= _mean("kv_allocated_mib", [r.kv_bytes_allocated / 2**20 for r in records])
    summary |= _mean("kv_bits", [r.kv_bits for r in records if r.kv_bits])
    if any(r.kv_bytes_by_use.keys() > {"entries"} for r in records):
        for use in KV_USES:
            summary |= _mean(f"kv_{use}_mib", [r.kv_bytes_by_use.get(use, 0) / 2**20 for r in records])
    if any(r.forecast_bytes_peak for r in records):
        summary |= _mean("forecast_mib", [r.forecast_bytes_peak / 2**20 for r in records])
    return summary


def missing(records: Sequence[Record]) -> dict[str, str]:
    """By metric that records lack, the reason: that of most of them."""
    names = sorted({name for r in records for name in r.notes})
    return {name: statistics.mode(r.notes[name] for r in records if name in r.notes) for name in names}


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    mean, half_width = mean_and_interval(values)
    return {name: mean, f"{name}_ci95": half_width, f"{name}_n": len(values)}


def _median(name: str, values: Sequence[float]) -> dict[str, float]:
    return _with_ends(name, median_and_interval(values), len(values)) if values else {}


def _with_ends(name: str, value_and_ends: tuple[float, float, float], number: int) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_n"), (*value_and_ends, number), strict=True))


_ROWS = (
    ("executed compute, {} a video", "pflops", "{:.4g}"),  # the unit that fits
    ("compute left, of baseline's FLOPs", "flops_share", "{:.3f}"),
    ("chunk steps computed", "computed_fraction", "{:.3f}"),
    ("latency, s (median)", "latency_s", "{:.2f}"),
    ("latency of the first chunk, s (median)", "latency_first_chunk_s", "{:.2f}"),
    ("frames generated a second, fps (median)", "fps", "{:.3g}"),
    ("speed-up (median of pairs)", "speedup", "{:.2f}x"),
    ("efficiency (speed-up x compute left)", "efficiency", "{:.2f}"),
    ("time spent deciding", "policy_share", "{:.1%}"),
    ("time spent compressing", "compression_share", "{:.1%}"),
    ("PSNR, dB", "psnr", "{:.2f}"),
    ("videos identical to baseline's", "identical_videos", "{:.0f}"),
    ("latents' signal to noise, dB", "latent_snr", "{:.2f}"),
    ("SSIM", "ssim", "{:.4f}"),
    ("LPIPS (alex)", "lpips", "{:.4f}"),
    ("LPIPS (vgg)", "lpips_vgg", "{:.4f}"),
    ("caption: colour right", "caption_colour_right", "{:.0%}"),
    ("caption: shape right", "caption_shape_right", "{:.0%}"),
    ("caption: motion right", "caption_motion_right", "{:.0%}"),
    ("caption: all three right", "caption_right", "{:.0%}"),
    ("seam ratio at chunk borders", "seam_ratio", "{:.2f}"),
    ("jump at chunk borders, pixels", "position_jump_pixels", "{:.2f}"),
    ("break of optical flow there, pixels", "flow_jump", "{:.2f}"),
    ("bits a number of finished chunks' keys and values", "kv_bits", "{:.3g}"),
    ("KV cache in use, at most, MiB", "kv_mib", "{:.2f}"),
    ("KV cache allocated, MiB", "kv_allocated_mib", "{:.2f}"),
    *((f"  {name}", f"kv_{use}_mib", "{:.2f}") for use, name in KV_USES.items()),
    ("outputs kept for forecasts, MiB", "forecast_mib", "{:.2f}"),
)

_TIMES = ("latency_s", *STREAMING, "speedup", "efficiency", "policy_share", "compression_share")


_AGAINST_BASELINE = ("psnr", "latent_snr", "ssim", "lpips", "lpips_vgg")


def print_summary(job: Job, records: Sequence[Record], store: RecordStore, console: Console) -> None:
    """The job's table, what is missing and why, and where everything is."""
    summary = summarise(records)
    over = f"{counted(len(records), 'video')}, measured here"
    busy = [record.environment for record in records if record.latency_s and is_busy(record.environment)]
    table = Table(title=f"{job.model_name} / {job.setting_name} / {job.method_name}: {over}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("spread")
    is_another = another_video(job, flat(records[0].method_config))
    unit, size = flop_unit(summary["pflops"] * PFLOP)
    summary |= {key: summary[key] * PFLOP / size for key in ("pflops", "pflops_ci95") if key in summary}
    for title, key, form in _ROWS:
        if key in summary:
            mark = f" {FLAG}" if is_another and key in _AGAINST_BASELINE else "*" if busy and key in _TIMES else ""
            table.add_row(title.format(unit) + mark, form.format(summary[key]), _spread(summary, key, form))
    console.print(table)
    if busy:
        of = counted(sum(record.latency_s is not None for record in records), "video")
        console.print(f"* the machine was busy for {len(busy)} of {of} ({told_load(busy)}): their times are too long")
    if is_another and any(key in summary for key in _AGAINST_BASELINE):
        console.print(f"{FLAG} {told_another_video(job)}", markup=False)
    for remark, number in sorted(Counter(remark for r in records for remark in r.remarks).items()):
        console.print(f"{number} of {counted(len(records), 'video')}: {remark}", markup=False)
    for name, reason in sorted({(n, text) for r in records for n, text in r.notes.items()}):
        console.print(f"{name}: n/a ({reason})", markup=False)  # a reason may quote a prompt
    first = records[0]
    console.print(f"first video  {shown(store.preview_path(first.key))}", markup=False)
    console.print(f"all videos, traces, records  {shown(store.run_path(''))}", markup=False)


def _spread(summary: dict[str, float], key: str, form: str) -> str:
    """A figure's 95 % interval, and how many it is over where that is not the number of videos or there is none."""
    if f"{key}_n" not in summary:
        return ""
    number, interval = summary[f"{key}_n"], ""
    if not math.isnan(summary.get(f"{key}_ci95", math.nan)):
        interval = f"±{summary[f'{key}_ci95']:.3g}"
    elif not math.isnan(summary.get(f"{key}_low", math.nan)):
        interval = "-".join(form.replace("x", "").format(summary[f"{key}_{end}"]) for end in ("low", "high"))
    over = counted(number, "pair") if key == "speedup" else f"n {number}"
    if not interval:
        return f"({over})"
    return f"{interval} (95 %{f', {over}' if key == 'speedup' or number != summary['n'] else ''})"
