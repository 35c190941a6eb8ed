"""Methods of reuse at equal compute, from the records of ``experiment=reuse_curve``.

PSNR to the baseline (vanilla, or what the experiment file names for the model) against compute left, with 95 %
intervals over prompts, a curve a method; the same for other values of one option, its warm-up; and the differences
prompt by prompt. ``python -m experiments.figures`` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.statistics import mean_and_interval, paired_difference
from experiments.job.compose import baselines
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.units import counted
from experiments.records.collect import at_defaults, flat, job_options
from experiments.records.settings import told_apart, value_text
from experiments.show.methods import family, found_methods
from experiments.show.results import BOOTSTRAP, Column, Table
from experiments.show.style import COLUMN_WIDTH_IN, colour_and_marker, error_bars, styled

COMPARED_SHARES = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # of the baseline's FLOPs, at which methods are compared
SETTING = ["family", "options"]
_SWEEP = "python -m experiments.sweep experiment=reuse_curve"
NO_VIDEOS = f"no finished videos of any method that reuses; make them with {_SWEEP}"
PSNR_CAP_DB = 60.0  # videos closer to the baseline than this count as this: identical ones would be infinite


@dataclass(frozen=True)
class Curves:
    """What the experiment file says of its curves, under ``curves``.

    Attributes:
        option: that tells a method's curves apart, by dotted name.
        title: what it is called.
        at: its value in the curves that are drawn, and compared, by themselves.
        compared: the method, without slow or fast, whose curve is compared with every other's.
    """

    option: str
    title: str
    at: float
    compared: str


def reuse_videos(
    frame: pd.DataFrame, job: Job, listed: Sequence[Job], curves: Curves
) -> tuple[pd.DataFrame, list[str]]:
    """The videos that the curves compare, and notes of what is left out.

    They are of every setting of the experiment that has any, and of the default options of every method without such a
    setting; baselines are none of them. ``family`` is the method, ``line`` its value of the curves' option, ``told``
    what else sets the setting apart from others of its family. Only prompts that every setting of the experiment has,
    so that no point is better for having easier ones; another method that lacks any of those is left out. Raises
    BadInput if nothing is left.
    """
    wanted = {(each.method_name, job_options(each)) for each in listed if each.method_name not in baselines()}
    of_sweep = [pair in wanted for pair in zip(frame["method"], frame["options"], strict=True)]
    swept = frame[pd.Series(of_sweep, frame.index, dtype=bool)]
    families = {family(name) for name in swept["method"]}
    others = [
        at_defaults(frame, job, name)
        for name in found_methods(frame, job)
        if name not in baselines() and family(name) not in families
    ]
    videos = pd.concat([swept, *others]) if others else swept
    if videos.empty:
        raise BadInput(f"{NO_VIDEOS} model={job.model_name}")
    videos = _described(videos, curves.option).drop_duplicates([*SETTING, "prompt", "seed"])
    videos["psnr"] = pd.to_numeric(videos["psnr"]).clip(upper=PSNR_CAP_DB)
    first = videos[videos["family"].isin(families)] if len(swept) else videos
    num_settings = len(first.groupby(SETTING))
    counts = first.groupby(["prompt", "seed"]).size()
    common = counts.index[counts == num_settings]
    if common.empty:
        raise BadInput(f"no prompt has videos of all of {counted(num_settings, 'setting')}; finish the sweep: {_SWEEP}")
    of_common = videos[pd.MultiIndex.from_frame(videos[["prompt", "seed"]]).isin(common)]
    complete = of_common[of_common.groupby(SETTING)["prompt"].transform("size") == len(common)]
    lacking = ", ".join(sorted(set(videos["family"]) - set(complete["family"])))
    number = counted(len(common), "prompt")
    return complete, [f"Left out, for lack of some of the {number} that all others have: {lacking}"] if lacking else []


def _described(videos: pd.DataFrame, option: str) -> pd.DataFrame:
    """With each video's family, line, and what tells its setting from others of its family."""
    videos = videos.assign(family=videos["method"].map(family))
    columns: dict[str, dict[tuple[str, str], Any]] = {"line": {}, "told": {}}
    for name, own in videos.groupby("family"):
        settings = {text: {"method": name, **flat(json.loads(text))} for text in own["options"].unique()}
        apart = [each for each in told_apart(list(settings.values())) if each != option]
        methods = own.drop_duplicates("options").set_index("options")["method"]
        for text, options in settings.items():
            columns["line"][name, text] = options.get(option)
            told = [f"{each} {value_text(options[each])}" for each in apart if options.get(each) is not None]
            if not told and methods.nunique() > 1:  # they differ in their parts
                told = [methods[text]]
            columns["told"][name, text] = ", ".join(told)
    pairs = list(zip(videos["family"], videos["options"], strict=True))
    return videos.assign(**{key: [values[pair] for pair in pairs] for key, values in columns.items()})


def reuse_points(videos: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: family, line, what else tells it apart, compute left, mean PSNR and half-width of its 95 %
    interval, n; families in the order of their names."""
    rows = []
    for (name, _), group in videos.groupby(SETTING):
        row = {"family": name, "line": group["line"].iloc[0], "told": group["told"].iloc[0], "n": len(group)}
        for key, values in (("compute_left", group["flops_share"]), ("psnr", group["psnr"])):
            row[key], row[f"{key}_ci95"] = mean_and_interval(list(values))
        rows.append(row)
    points = pd.DataFrame(rows).sort_values(["family", "line", "compute_left"], ignore_index=True)
    return points.assign(line=pd.to_numeric(points["line"]))


def at_equal_compute(videos: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """One method against each other, prompt by prompt: the mean difference in PSNR at equal compute.

    Between a prompt's two nearest settings PSNR is interpolated; where a method has none on both sides it is left out.
    """
    videos = on_line(videos, curves)
    psnr_at: dict[str, list[np.ndarray]] = {}
    for (_, name), own in videos.sort_values("flops_share").groupby(["prompt", "family"]):
        curve = np.interp(COMPARED_SHARES, own["flops_share"], own["psnr"], left=np.nan, right=np.nan)
        psnr_at.setdefault(name, []).append(curve)
    ours = psnr_at.pop(curves.compared, [])
    rows = []
    for other, theirs in sorted(psnr_at.items()):
        if len(theirs) != len(ours):
            continue
        for place, share in enumerate(COMPARED_SHARES):
            pairs = np.array([(mine[place], its[place]) for mine, its in zip(ours, theirs, strict=True)])
            pairs = pairs[~np.isnan(pairs).any(axis=1)]
            if len(pairs):
                difference, low, high = paired_difference(*pairs.T)
                rows.append(
                    {
                        "against": other,
                        "compute_left": share,
                        "difference_db": difference,
                        "low": low,
                        "high": high,
                        "won": int((pairs[:, 0] > pairs[:, 1]).sum()),
                        "difference_db_n": len(pairs),
                    }
                )
    return pd.DataFrame(rows)


def on_line(rows: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """Of videos or points, those that have the main curves' value of their option, or no such option."""
    return rows[(rows["line"] == curves.at) | rows["line"].isna()]


def tables(
    points: pd.DataFrame,
    compared: pd.DataFrame,
    curves: Curves,
    baseline: str,
    source: str,
    notes: Sequence[str] = (),
) -> list[Table]:
    """What the curves say at equal compute, and their points."""
    measured = (
        f"Measured here ({source}). PSNR against {baseline}'s video of the same prompt and seed, a video counting at "
        f"most {PSNR_CAP_DB:.0f} dB. "
    )
    differences = Table(
        "Reuse at equal compute.",
        f"{measured}{curves.compared} minus another method, prompt by prompt, {curves.title} {curves.at:g}, settings "
        "interpolated to equal compute: mean difference with its 95 % bootstrap interval and the number of prompts. "
        f"{BOOTSTRAP}",
        (
            Column(f"{curves.compared} against", "against"),
            Column("compute left", "compute_left", "{:g}"),
            Column("PSNR difference dB", "difference_db", "{:+.2f}", "{low:+.2f} to {high:+.2f}"),
            Column("prompts won", "won"),
        ),
        compared,
        suffix="_paired",
    )
    settings = Table(
        "All settings.",
        f"{measured}Means ± half-width of the 95 % interval over the same prompts.",
        (
            Column("method", "family"),
            Column(curves.title, "line", "{:g}"),
            Column("options", "told"),
            Column("n", "n"),
            Column("compute left", "compute_left", "{:.3f}", "± {compute_left_ci95:.3f}"),
            Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}"),
        ),
        points,
        tuple(notes),
    )
    return [differences, settings] if len(compared) else [settings]


@styled()
def draw_reuse_curve(points: pd.DataFrame, curves: Curves, baseline: str, subject: str) -> Figure:
    """PSNR against compute left, a line a method; ``subject`` says of what."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.5))
    groups = list(on_line(points, curves).groupby("family"))
    for name, mine in groups:
        _curve(axes, mine, name, *colour_and_marker(name))
    axes.set_title(f"Reuse at equal compute, {curves.title} {curves.at:g} ({subject})")
    axes.set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    axes.set_ylabel(f"PSNR to {baseline}, dB (mean, 95 %, n = {points['n'].max()})")
    figure.set_figheight(2.5 + 0.1 * len(groups))
    figure.legend(loc="outside lower center", ncols=3)  # inside it would cover points
    return figure


@styled()
def draw_warmup_sweep(points: pd.DataFrame, curves: Curves, baseline: str, subject: str) -> Figure:
    """The same for every value of the curves' option: a panel a method that has it, a line a value."""
    points = points[points["line"].notna()]
    names, values = sorted(points["family"].unique()), sorted(points["line"].unique())
    size = (COLUMN_WIDTH_IN, 1.45 * len(names) + 0.6)
    figure, panels = plt.subplots(len(names), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    shades = plt.colormaps["viridis"](np.linspace(0, 0.9, len(values)))
    for axes, name in zip(panels[:, 0], names, strict=True):
        for value, shade, marker in zip(values, shades, "os^Dv<>P"[: len(values)], strict=True):
            mine = points[(points["family"] == name) & (points["line"] == value)]
            if len(mine):
                _curve(axes, mine, f"{value:g}", shade, marker)
        axes.set_title(name)
        axes.set_ylabel("PSNR, dB")
    panels[-1, 0].set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    every = (axes.get_legend_handles_labels() for axes in panels[:, 0])
    handles = {label: line for lines, labels in every for line, label in zip(lines, labels, strict=True)}
    handles = {f"{value:g}": handles[f"{value:g}"] for value in values}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), title=curves.title)
    figure.suptitle(
        f"{curves.title.capitalize()}: PSNR to {baseline}, 95 %, n = {points['n'].max()} ({subject})", fontsize=7
    )
    return figure


def _curve(axes: Axes, points: pd.DataFrame, title: str, colour: object, marker: str) -> None:
    points = points.sort_values("compute_left")
    ends = {"yerr": error_bars(points["psnr"], points["psnr_ci95"], 0, PSNR_CAP_DB), "elinewidth": 0.6}
    axes.errorbar(points["compute_left"], points["psnr"], **ends, color=colour, marker=marker, label=title)
