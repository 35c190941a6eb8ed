"""Methods of reuse at equal compute, from the records of an experiment that says something under ``curves``.

PSNR to the baseline (vanilla, or what the experiment file names for the model), or the latents' signal-to-noise ratio,
against compute left, with 95 % intervals over videos, a curve a method; the same for other values of one option, its
warm-up; and the differences video by video. ``python -m experiments.figures`` makes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.latent_error import CAP_DB
from eval.statistics import mean_and_interval, paired_difference
from experiments.job.compose import baselines
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.units import counted
from experiments.records.collect import at_defaults, flat, job_options
from experiments.records.settings import told_apart, value_text
from experiments.show.methods import family, found_methods
from experiments.show.noise_floor import draw_floor
from experiments.show.results import BOOTSTRAP, Column, Table
from experiments.show.style import COLUMN_WIDTH_IN, CURVE, LINE_STYLES, colour_and_marker, error_bars, styled

COMPARED_SHARES = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # of the baseline's FLOPs, at which methods are compared
SKIPS_BELOW = 0.999  # of the baseline's FLOPs; rounding of a share is far less
NEAR = 0.02  # of a share that lies this little beyond the compared method's settings the nearest of them counts
SETTING = ["family", "options"]
BESIDE_PSNR = {"psnr_uncapped": ("uncapped_", "_db"), "lpips": ("lpips_", ""), "caption_right": ("caption_", "")}
NO_VIDEOS = "no finished videos of any method that reuses; make them with python -m experiments.sweep experiment="
PSNR_CAP_DB = 60.0  # videos closer to the baseline than this count as this: identical ones would be infinite


@dataclass(frozen=True)
class Quality:
    """What curves can show, in dB.

    Attributes:
        title: of an axis, before what it is to.
        told: in a caption, before the baseline and after it.
        highest: that a mean can be.
    """

    title: str
    told: tuple[str, str]
    highest: float


QUALITIES = {
    "psnr": Quality(
        "PSNR",
        ("PSNR against", f", a video counting at most {PSNR_CAP_DB:.0f} dB, or uncapped without the identical ones"),
        PSNR_CAP_DB,
    ),
    "latent_snr": Quality(
        "latents' SNR",
        ("Signal-to-noise ratio of a video's latents against those of", f", uncapped ({CAP_DB:.0f} dB where equal)"),
        CAP_DB,
    ),
}


@dataclass(frozen=True)
class Curves:
    """What the experiment file says of its curves, under ``curves``.

    Attributes:
        option: that tells a method's curves apart, by dotted name.
        title: what it is called.
        at: its value in the curves that are drawn, and compared, by themselves.
        compared: the methods, without slow or fast, whose curves are compared with every other's; one, or several.
        quality: "psnr", or "latent_snr".
        shares: of the baseline's FLOPs, at which methods are compared.
        by_motion: also make a table of each class of motion by itself, see experiments.show.motion_split.
        without: by option, what the curve of a method that has none for it is called besides; it is one of its own.
    """

    option: str
    title: str
    at: float
    compared: str | Sequence[str]
    quality: str = "psnr"
    shares: Sequence[float] = COMPARED_SHARES
    by_motion: bool = False
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_compared(self) -> Sequence[str]:
        return [self.compared] if isinstance(self.compared, str) else self.compared

    @property
    def shown(self) -> Quality:
        return QUALITIES[self.quality]


def curves_of(experiment: Mapping[str, Any]) -> list[Curves]:
    """What a file says under ``curves``, one for each quality where it lists several. Raises BadInput."""
    told = dict(experiment["curves"])
    named = told.pop("quality", "psnr")
    qualities = [named] if isinstance(named, str) else named
    if unknown := [name for name in qualities if name not in QUALITIES]:
        raise BadInput(f"curves: quality {unknown[0]!r} is none that they show; choose from {', '.join(QUALITIES)}")
    return [Curves(**told, quality=name) for name in qualities]


def reuse_videos(
    frame: pd.DataFrame, job: Job, listed: Sequence[Job], curves: Curves, experiment: str = CURVE
) -> tuple[pd.DataFrame, list[str]]:
    """The videos that the curves compare, and notes of what is left out.

    They are of every setting of the experiment that has any, and of the default options of every method without such a
    setting; baselines are none of them. ``family`` is the method with what is its curve's own, ``line`` its value of
    the curves' option, ``told`` what else sets the setting apart from others of its family. Only prompts and seeds that
    every setting of the experiment has, so that no point is better for having easier ones; another method that lacks
    any of those is left out. ``psnr_uncapped`` is PSNR as measured. Raises BadInput if nothing is left.
    """
    sweep = f"{NO_VIDEOS}{experiment} model={job.model_name}"
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
        raise BadInput(sweep)
    if curves.quality not in videos:
        raise BadInput(f"no video has {curves.quality}; {sweep.partition('; ')[2]}")
    videos = _described(videos, curves).drop_duplicates([*SETTING, "prompt", "seed"])
    videos["psnr_uncapped"] = pd.to_numeric(videos["psnr"])
    videos["psnr"] = videos["psnr_uncapped"].clip(upper=PSNR_CAP_DB)
    notes = []
    if curves.quality != "psnr":  # one without latents is none of these curves
        has = pd.to_numeric(videos[curves.quality]).notna()
        lacking = ", ".join(f"{n} of {name}" for name, n in videos["family"][~has].value_counts().sort_index().items())
        notes, videos = [f"Left out, made without latents: {lacking}"] if lacking else [], videos[has]
    first = videos[videos["method"].isin(set(swept["method"]))] if len(swept) else videos
    num_settings = len(first.groupby(SETTING))
    counts = first.groupby(["prompt", "seed"]).size()
    common = counts.index[counts == num_settings]
    if common.empty:
        told = f"no prompt has videos of all of {counted(num_settings, 'setting')}"
        raise BadInput(f"{told}; finish the sweep: {sweep.partition('with ')[2]}")
    of_common = videos[pd.MultiIndex.from_frame(videos[["prompt", "seed"]]).isin(common)]
    complete = of_common[of_common.groupby(SETTING)["prompt"].transform("size") == len(common)]
    lacking = ", ".join(sorted(set(videos["family"]) - set(complete["family"])))
    number = counted(len(common), "prompt" if common.get_level_values("seed").nunique() == 1 else "video")
    told = f"Left out, for lack of some of the {number} that all others have: {lacking}"
    return complete, [*notes, told] if lacking else notes


def _described(videos: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """With each video's family, line, and what tells its setting from others of its family."""
    option, flattened = curves.option, {text: flat(json.loads(text)) for text in videos["options"].unique()}

    def own_curve(method: str, text: str) -> str:
        lacks = [told for name, told in curves.without.items() if flattened[text].get(name, "") is None]
        return ", ".join([family(method), *lacks])

    families = [own_curve(*pair) for pair in zip(videos["method"], videos["options"], strict=True)]
    videos = videos.assign(family=families)
    columns: dict[str, dict[tuple[str, str], Any]] = {"line": {}, "told": {}}
    for name, own in videos.groupby("family"):
        settings = {text: {"method": name, **flattened[text]} for text in own["options"].unique()}
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


def reuse_points(videos: pd.DataFrame, quality: str = "psnr") -> pd.DataFrame:
    """One row a setting: family, line, what else tells it apart, compute left, mean quality and half-width of its 95 %
    interval, n; of PSNR also what is not capped; families in the order of their names."""
    rows = []
    for (name, _), group in videos.groupby(SETTING):
        row = {"family": name, "line": group["line"].iloc[0], "told": group["told"].iloc[0], "n": len(group)}
        for key, values in (("compute_left", group["flops_share"]), (quality, group[quality])):
            row[key], row[f"{key}_ci95"] = mean_and_interval(list(values.astype(float)))
        row |= _uncapped(group["psnr_uncapped"]) if quality == "psnr" else {"median": group[quality].median()}
        rows.append(row)
    points = pd.DataFrame(rows).sort_values(["family", "line", "compute_left"], ignore_index=True)
    return points.assign(line=pd.to_numeric(points["line"]))


def _uncapped(values: pd.Series) -> dict[str, float]:
    """Mean of the PSNRs of videos that are not identical to the baseline's, how many are, and the median of all."""
    finite = values[np.isfinite(values)]
    mean, half_width = mean_and_interval(list(finite))
    identical = int(np.isinf(values).sum())
    return {
        "psnr_uncapped": mean,
        "psnr_uncapped_ci95": half_width,
        "psnr_uncapped_n": len(finite),
        "median": values.median(),
        "identical_videos": identical or np.nan,
    }


def at_equal_compute(videos: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """Each compared method against each other, by prompt and seed: the mean difference in quality at equal compute.

    Between the two nearest settings of a prompt and seed quality is interpolated; where a method has none on both sides
    it is left out. Beside PSNR come the uncapped difference, over pairs of which none is identical, and those in LPIPS
    and in captions shown (0 or 1 a video), where they were measured.
    """
    names = {curves.quality: ("", "_db")} | (BESIDE_PSNR if curves.quality == "psnr" else {})
    names = {key: name for key, name in names.items() if key in videos and videos[key].notna().all()}
    grouped = on_line(videos, curves).sort_values("flops_share").groupby(["family", "prompt", "seed"])
    by_method: dict[str, dict[tuple[str, int], pd.DataFrame]] = {}
    for (name, *pair), group in grouped:
        by_method.setdefault(name, {})[tuple(pair)] = group
    rows = []
    pairs_of_methods = [
        (one, other) for one in curves.all_compared for other in sorted(by_method) if one in by_method and other != one
    ]
    for compared, other in pairs_of_methods:
        ours, theirs = by_method[compared], by_method[other]
        if theirs.keys() != ours.keys():
            continue
        shares = {pair: near(curves.shares, group["flops_share"]) for pair, group in ours.items()}
        found = {name: interpolated(key, shares, ours, theirs) for key, name in names.items()}
        for place, share in enumerate(curves.shares):
            row = {"compared": compared} if len(curves.all_compared) > 1 else {}
            row |= {"against": other, "compute_left": share}
            for name, pairs in found.items():
                row |= _difference(*name, pairs[np.isfinite(pairs[:, :, place]).all(axis=1), :, place])
            if row["difference_db_n"]:
                rows.append(row)
    return pd.DataFrame(rows)


def near(shares: Sequence[float], settings: pd.Series) -> np.ndarray:
    """float [shares], the shares, those a little beyond all settings moved to the nearest of them."""
    moved = np.clip(shares, settings.min(), settings.max())
    return np.where(np.abs(moved - shares) <= NEAR, moved, shares)


def interpolated(key: str, shares: Mapping[Any, np.ndarray], *methods: Mapping[Any, pd.DataFrame]) -> np.ndarray:
    """[videos, methods, shares] of one quality, nan beyond a method's settings.

    A setting that skipped nothing made the baseline's video, and is no end of an interpolation: half-way to it nothing
    would have been measured.
    """

    def along(own: pd.DataFrame, at: np.ndarray) -> np.ndarray:
        skips = own[own["flops_share"] < SKIPS_BELOW]
        if skips.empty:
            return np.full(len(at), np.nan)
        return np.interp(at, skips["flops_share"], skips[key].astype(float), left=np.nan, right=np.nan)

    return np.array([[along(own[pair], at) for own in methods] for pair, at in shares.items()])


def _difference(prefix: str, unit: str, pairs: np.ndarray) -> dict[str, Any]:
    """The mean difference between the columns of [pairs, 2], its interval's ends, how many are above 0, and of how
    many."""
    found: dict[str, Any] = {f"difference{unit}_n": len(pairs)}
    if len(pairs):
        found |= dict(zip((f"difference{unit}", "low", "high"), paired_difference(*pairs.T), strict=True))
        found["won"] = int((pairs[:, 0] > pairs[:, 1]).sum())
    return {f"{prefix}{key}": value for key, value in found.items()}


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
    shown = curves.shown
    measured = (
        f"Measured here ({source}). {shown.told[0]} {baseline}'s video of the same prompt and seed{shown.told[1]}. "
    )
    *several, last = curves.all_compared
    one = f"{', '.join(several)} or {last}" if several else last
    differences = Table(
        "Reuse at equal compute.",
        f"{measured}{one} minus another method, prompt by prompt and seed by seed, {curves.title} {curves.at:g}, "
        f"settings interpolated to equal compute (a share up to {NEAR:g} beyond {'the first' if several else one}'s "
        "settings: at the nearest of them): mean difference with its 95 % bootstrap interval and the number of videos. "
        f"{BOOTSTRAP}",
        (
            *([Column("of", "compared")] if several else []),
            Column("against" if several else f"{one} against", "against"),
            Column("compute left", "compute_left", "{:g}"),
            Column(f"{shown.title} difference dB", "difference_db", "{:+.2f}", "{low:+.2f} to {high:+.2f}"),
            Column("uncapped", "uncapped_difference_db", "{:+.2f}", "{uncapped_low:+.2f} to {uncapped_high:+.2f}"),
            Column("videos won", "won"),
            Column("LPIPS", "lpips_difference", "{:+.4f}", "{lpips_low:+.4f} to {lpips_high:+.4f}"),
            Column("captions shown", "caption_difference", "{:+.1%}", "{caption_low:+.1%} to {caption_high:+.1%}"),
        ),
        compared,
        suffix="_paired",
    )
    settings = Table(
        "All settings.",
        f"{measured}Means ± half-width of the 95 % interval over the same prompts and seeds; the median is of all, "
        "uncapped.",
        (
            Column("method", "family"),
            Column(curves.title, "line", "{:g}"),
            Column("options", "told"),
            Column("n", "n"),
            Column("compute left", "compute_left", "{:.3f}", "± {compute_left_ci95:.3f}"),
            Column(f"{shown.title} dB", curves.quality, "{:.2f}", f"± {{{curves.quality}_ci95:.2f}}"),
            Column("uncapped", "psnr_uncapped", "{:.2f}", "± {psnr_uncapped_ci95:.2f}"),
            Column("median", "median", "{:.2f}"),
            Column("identical", "identical_videos", "{:.0f}"),
        ),
        points,
        tuple(notes),
    )
    return [differences, settings] if len(compared) else [settings]


@styled()
def draw_reuse_curve(
    points: pd.DataFrame, curves: Curves, baseline: str, subject: str, floor_db: float | None = None
) -> Figure:
    """Quality against compute left, a line a method, and one for the floor; ``subject`` says of what."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.5))
    groups = list(on_line(points, curves).groupby("family"))
    alike: dict[str, int] = {}  # curves of one colour, such as a method's with other parts: other lines
    for name, mine in groups:
        colour, marker = colour_and_marker(re.split(r" \+ |, ", name)[0])
        style = LINE_STYLES[alike.get(colour, 0) % len(LINE_STYLES)]
        alike[colour] = alike.get(colour, 0) + 1
        _curve(axes, mine, name, curves, colour, marker, style)
    draw_floor(axes, floor_db)
    axes.set_title(f"Reuse at equal compute, {curves.title} {curves.at:g} ({subject})")
    axes.set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    axes.set_ylabel(f"{curves.shown.title} to {baseline}, dB (mean, 95 %, n = {points['n'].max()})")
    figure.set_figheight(2.5 + 0.1 * len(groups))
    ncols = 3 if max(map(len, axes.get_legend_handles_labels()[1])) <= 12 else 2
    figure.legend(loc="outside lower center", ncols=ncols, handlelength=3)  # inside it would cover points; dashes show
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
                _curve(axes, mine, f"{value:g}", curves, shade, marker)
        axes.set_title(name)
        axes.set_ylabel(f"{curves.shown.title}, dB")
    panels[-1, 0].set_xlabel(f"compute left (share of {baseline}'s executed FLOPs)")
    every = (axes.get_legend_handles_labels() for axes in panels[:, 0])
    handles = {label: line for lines, labels in every for line, label in zip(lines, labels, strict=True)}
    handles = {f"{value:g}": handles[f"{value:g}"] for value in values}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), title=curves.title)
    figure.suptitle(
        f"{curves.title.capitalize()}: {curves.shown.title} to {baseline}, 95 %, n = {points['n'].max()} ({subject})",
        fontsize=7,
    )
    return figure


def _curve(
    axes: Axes, points: pd.DataFrame, title: str, curves: Curves, colour: object, marker: str, style: str = "-"
) -> None:
    points, key = points.sort_values("compute_left"), curves.quality
    ends = error_bars(points[key], points[f"{key}_ci95"], 0 if key == "psnr" else -math.inf, curves.shown.highest)
    look = {"color": colour, "marker": marker, "linestyle": style, "label": title}
    axes.errorbar(points["compute_left"], points[key], yerr=ends, elinewidth=0.6, **look)
