"""Quality against executed FLOPs over every setting that has records, and the settings that no other one dominates."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eval.statistics import mean_and_interval
from experiments.job.units import flop_unit
from experiments.show.noise_floor import draw_floor
from experiments.show.reuse_curve import PSNR_CAP_DB, SETTING
from experiments.show.style import BLACK, COLUMN_WIDTH_IN, RANGES, colour_and_marker, error_bars, styled

QUALITIES = {"psnr": "PSNR to {}, dB", "ssim": "SSIM to {}"}  # the baseline
_ENDS = {**RANGES, "psnr": (0.0, PSNR_CAP_DB)}  # of what a mean can be


def pareto_points(videos: pd.DataFrame) -> pd.DataFrame:
    """One row a setting of ``reuse_videos``: mean FLOPs, mean qualities with half-widths of their 95 % intervals, n,
    and whether it is on the front of each quality."""
    rows = []
    for names, group in videos.groupby(SETTING):
        row = {**dict(zip(SETTING, names, strict=True)), "n": len(group), "flops": group["flops"].mean()}
        for quality in QUALITIES:
            row[quality], row[f"{quality}_ci95"] = mean_and_interval(list(group[quality].astype(float)))
        rows.append(row)
    points = pd.DataFrame(rows).sort_values("flops", ignore_index=True)
    for quality in QUALITIES:
        points[f"{quality}_front"] = on_front(points["flops"], points[quality])
    return points


def on_front(cost: pd.Series, quality: pd.Series) -> pd.Series:
    """Whether no other point costs at most as much and is better, or costs less and is as good."""
    return pd.Series(
        [
            not (((cost <= c) & (quality > q)) | ((cost < c) & (quality >= q))).any()
            for c, q in zip(cost, quality, strict=True)
        ],
        index=cost.index,
    )


@styled()
def draw_pareto(
    points: pd.DataFrame, baseline: str, baseline_flops: float, subject: str, floor_db: float | None = None
) -> Figure:
    """A panel a quality: all settings, with intervals on the front, the baseline's compute and the floor of PSNR."""
    unit, scale = flop_unit(baseline_flops)
    figure, panels = plt.subplots(len(QUALITIES), 1, figsize=(COLUMN_WIDTH_IN, 3.9), sharex=True)
    for axes, (quality, label) in zip(panels, QUALITIES.items(), strict=True):
        front = points[points[f"{quality}_front"]]
        axes.step(
            front["flops"] / scale,
            front[quality],
            where="post",
            color=BLACK,
            linewidth=0.7,
            label="front (filled)",
            zorder=1,
        )
        for name, mine in points.groupby("family"):
            best = mine[mine[f"{quality}_front"]]
            look = {**dict(zip(("color", "marker"), colour_and_marker(name), strict=True)), "linestyle": "none"}
            axes.plot(mine["flops"] / scale, mine[quality], **look, markerfacecolor="white", label=name)
            bars = error_bars(best[quality], best[f"{quality}_ci95"], *_ENDS[quality])
            axes.errorbar(best["flops"] / scale, best[quality], yerr=bars, elinewidth=0.6, **look)
        axes.axvline(baseline_flops / scale, color=BLACK, linestyle=":", linewidth=0.8, label=f"{baseline}'s compute")
        axes.set_ylabel(label.format(baseline))
    draw_floor(panels[0], floor_db)
    panels[-1].set_xlabel(f"executed {unit} a video (mean)")
    panels[0].set_title(f"Pareto front, 95 %, n = {points['n'].max()} ({subject})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
