"""Chunkwise, uniform and every-k reuse at equal compute, from the records of ``experiment=reuse_curve``.

PSNR to the baseline (vanilla, or what the experiment file names for the model) against compute left at equal warm-up,
with 95 % intervals over prompts; the same for other warm-ups; and the differences prompt by prompt.
``python -m experiments.figures`` makes them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.statistics import mean_and_interval, paired_difference
from experiments.job.errors import BadInput
from experiments.show.results import BOOTSTRAP, Column, Table
from experiments.show.style import COLUMN_WIDTH_IN, FAMILY_COLOURS, FAMILY_MARKERS, error_bars, family, styled

# Method families by the option that is swept; slow and fast rows of one family are points of one curve.
FAMILIES = {"flowcache": "chunkwise (FlowCache)", "teacache": "uniform (TeaCache)", "every_k": "every k-th step"}
WARMUP_STEPS = 5  # of the main curve: the paper's
COMPARED_SHARES = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # of the baseline's FLOPs, at which families are compared
SETTING = ["family", "warmup_steps", "option"]
_SWEEP = "python -m experiments.sweep experiment=reuse_curve"
NO_VIDEOS = f"no finished videos of {', '.join(FAMILIES)}; make them with {_SWEEP}"
PSNR_CAP_DB = 60.0  # videos closer to the baseline than this count as this: identical ones would be infinite


def reuse_videos(frame: pd.DataFrame) -> pd.DataFrame:
    """The videos that the curves compare: family, warm-up, option, prompt, compute left, PSNR.

    Only prompts that every setting has, so that no point is better for having easier ones. Raises BadInput if no prompt
    is left.
    """
    frame = frame[frame["method"].map(family).isin(FAMILIES)].copy()
    if frame.empty:
        raise BadInput(NO_VIDEOS)
    frame["family"] = frame["method"].map(family)
    frame = frame.reindex(
        columns=frame.columns.union(["reuse.threshold", "reuse.every"], sort=False)
    )  # some families lack one
    frame["option"] = frame["reuse.threshold"].where(frame["family"] != "every_k", frame["reuse.every"])
    frame["warmup_steps"] = frame["reuse.warmup_steps"]
    frame["psnr"] = pd.to_numeric(frame["psnr"]).clip(upper=PSNR_CAP_DB)
    held = frame["forecast.part"].str.endswith(".Hold") & frame["forecast.quantity"].isna()
    standard = held & frame["refresh_clean_kv"] & frame["near_clean"] & frame["kv.budget"].isna()
    frame = frame[standard].drop_duplicates([*SETTING, "prompt", "seed"])
    num_settings = len(frame.groupby(SETTING))
    common = frame[frame.groupby(["prompt", "seed"])["psnr"].transform("size") == num_settings]
    if common.empty:
        raise BadInput(f"no prompt has videos of all {num_settings} settings; finish the sweep: {_SWEEP}")
    return common


def reuse_points(videos: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: family, warm-up, option, compute left, mean PSNR and half-width of its 95 % interval, n."""
    rows = []
    for (name, warmup, option), group in videos.groupby(SETTING):
        row = {"family": name, "warmup_steps": int(warmup), "option": option, "n": len(group)}
        for key, values in (("compute_left", group["flops_share"]), ("psnr", group["psnr"])):
            row[key], row[f"{key}_ci95"] = mean_and_interval(list(values))
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["family", "warmup_steps", "compute_left"], ignore_index=True)


def at_equal_compute(videos: pd.DataFrame, warmup_steps: int) -> pd.DataFrame:
    """Chunkwise reuse against each other family, prompt by prompt: the mean difference in PSNR at equal compute.

    Between a prompt's two nearest settings PSNR is interpolated; where a family has none on both sides it is left out.
    """
    videos = videos[videos["warmup_steps"] == warmup_steps]
    psnr_at: dict[str, list[np.ndarray]] = {name: [] for name in FAMILIES}
    for (_, name), own in videos.sort_values("flops_share").groupby(["prompt", "family"]):
        curve = np.interp(COMPARED_SHARES, own["flops_share"], own["psnr"], left=np.nan, right=np.nan)
        psnr_at[name].append(curve)
    rows = []
    for other in [name for name in FAMILIES if name != "flowcache"]:
        if not psnr_at[other] or len(psnr_at[other]) != len(psnr_at["flowcache"]):
            continue
        for place, share in enumerate(COMPARED_SHARES):
            ours, theirs = (np.array([curve[place] for curve in psnr_at[name]]) for name in ("flowcache", other))
            both = ~np.isnan(ours) & ~np.isnan(theirs)
            if both.any():
                difference, low, high = paired_difference(ours[both], theirs[both])
                rows.append(
                    {
                        "against": other,
                        "compute_left": share,
                        "difference_db": difference,
                        "low": low,
                        "high": high,
                        "won": int((ours[both] > theirs[both]).sum()),
                        "difference_db_n": int(both.sum()),
                    }
                )
    return pd.DataFrame(rows)


def tables(points: pd.DataFrame, compared: pd.DataFrame, baseline: str, source: str) -> list[Table]:
    """What the curves say at equal compute, and their points."""
    measured = (
        f"Measured here ({source}). PSNR against {baseline}'s video of the same prompt and seed, a video counting "
    )
    measured += f"at most {PSNR_CAP_DB:.0f} dB. "
    titles = {"family": points["family"].map(FAMILIES)}
    differences = Table(
        "Reuse at equal compute.",
        f"{measured}Chunkwise reuse less another, prompt by prompt, warm-up {WARMUP_STEPS}, settings interpolated to "
        f"equal compute: mean difference with its 95 % bootstrap interval and the number of prompts. {BOOTSTRAP}",
        (
            Column("chunkwise against", "against"),
            Column("compute left", "compute_left", "{:g}"),
            Column("PSNR difference dB", "difference_db", "{:+.2f}", "{low:+.2f} to {high:+.2f}"),
            Column("prompts won", "won"),
        ),
        compared.replace({"against": FAMILIES}) if len(compared) else compared,
        suffix="_paired",
    )
    settings = Table(
        "All settings.",
        f"{measured}Means ± half-width of the 95 % interval over the same prompts.",
        (
            Column("reuse", "family"),
            Column("warm-up", "warmup_steps"),
            Column("threshold or k", "option", "{:.4g}"),
            Column("n", "n"),
            Column("compute left", "compute_left", "{:.3f}", "± {compute_left_ci95:.3f}"),
            Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}"),
        ),
        points.assign(**titles),
    )
    return [differences, settings] if len(compared) else [settings]


@styled()
def draw_reuse_curve(points: pd.DataFrame, warmup_steps: int, baseline: str, subject: str) -> Figure:
    """PSNR against compute left, a line a family; ``subject`` says of what."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.5))
    for name, title in FAMILIES.items():
        mine = points[(points["family"] == name) & (points["warmup_steps"] == warmup_steps)]
        if len(mine):
            _curve(axes, mine, title, FAMILY_COLOURS[name], FAMILY_MARKERS[name])
    axes.set_title(f"Reuse at equal compute, warm-up {warmup_steps} ({subject})")
    axes.set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    axes.set_ylabel(f"PSNR to {baseline}, dB (mean, 95 %, n = {points['n'].max()})")
    axes.legend(loc="lower right")
    return figure


@styled()
def draw_warmup_sweep(points: pd.DataFrame, baseline: str, subject: str) -> Figure:
    """The same, a panel a family, a line a warm-up."""
    warmups = sorted(points["warmup_steps"].unique())
    size = (COLUMN_WIDTH_IN, 1.45 * len(FAMILIES) + 0.6)
    figure, panels = plt.subplots(len(FAMILIES), 1, figsize=size, sharex=True, sharey=True)
    shades = plt.colormaps["viridis"](np.linspace(0, 0.9, len(warmups)))
    for axes, (name, title) in zip(panels, FAMILIES.items(), strict=True):
        for warmup, shade, marker in zip(warmups, shades, "os^Dv<>P"[: len(warmups)], strict=True):
            mine = points[(points["family"] == name) & (points["warmup_steps"] == warmup)]
            if len(mine):
                _curve(axes, mine, f"{warmup}", shade, marker)
        axes.set_title(title)
        axes.set_ylabel("PSNR, dB")
    panels[-1].set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), title="warm-up steps")
    figure.suptitle(f"Warm-up: PSNR to {baseline}, 95 %, n = {points['n'].max()} ({subject})", fontsize=7)
    return figure


def _curve(axes: Axes, points: pd.DataFrame, title: str, colour: object, marker: str) -> None:
    ends = {"yerr": error_bars(points["psnr"], points["psnr_ci95"], 0, PSNR_CAP_DB), "elinewidth": 0.6}
    axes.errorbar(points["compute_left"], points["psnr"], **ends, color=colour, marker=marker, label=title)
