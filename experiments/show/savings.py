"""What each method saves at equal loss, over step counts and models: experiments that say something under ``savings``.

PSNR is against the video of the same number of steps in which nothing is skipped. By itself it says nothing of how much
is too much: that depends on how far a video of so many steps is from one of very many. What it would be if half of the
steps were left out, evenly, measures that, as the error estimate of a solver does, and a loss is how much a method's
error adds to it: with errors e of the method and h of half the steps, mean squares, 10 log10(1 + e / h) dB. A method
that is as far from vanilla as half of the steps are loses 3 dB; 1 dB is 5.9 dB nearer, 10 dB is 9.5 dB further.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from eval.statistics import mean_and_interval, paired_difference
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records.collect import collect, job_options
from experiments.show.methods import family
from experiments.show.results import BOOTSTRAP, Column, Table
from experiments.show.reuse_curve import PSNR_CAP_DB, SKIPS_BELOW
from experiments.show.style import COLUMN_WIDTH_IN, LINE_STYLES, colour_and_marker, error_bars, styled

LEAST_CAPTIONS = 0.5  # share of vanilla's videos that show theirs, below which there is nothing to save


@dataclass(frozen=True)
class Savings:
    """What the experiment file says under ``savings``.

    Attributes:
        losses_db: at which methods are compared.
        against: the method that the others are compared with; its setting of half the steps measures losses.
        families: models, a row of the figure each.
        steps: of a chunk, of a model whose checkpoint has its own list; None elsewhere.
    """

    losses_db: Sequence[float]
    against: str
    families: Sequence[str]
    steps: int | None = None


def psnr_at(loss_db: float, half_db: float) -> float:
    """PSNR in dB of a method that loses so much, where half the steps have ``half_db``."""
    return min(half_db - 10 * math.log10(10 ** (loss_db / 10) - 1), PSNR_CAP_DB)


def compute_at(psnr_db: float, shares: Sequence[float], psnrs_db: Sequence[float]) -> float:
    """The least share of compute with so many dB, on the straight lines between a method's settings. Where the cheapest
    setting has more, it is that one's; where none has as many, 1.0: nothing is credited that no setting showed."""
    points = sorted(zip(shares, psnrs_db, strict=True))
    before = None
    for share, psnr in points:
        if psnr >= psnr_db:
            if before is None:
                return share
            return before[0] + (share - before[0]) * (psnr_db - before[1]) / (psnr - before[1])
        before = share, psnr
    return 1.0


def videos_of(jobs: Iterable[Job], savings: Savings) -> pd.DataFrame:
    """Finished videos of one model's jobs, without the baseline's, with ``model``, ``steps``, ``family`` and
    ``vanilla_captions``, the share of the baseline's that show their caption; of every step count only prompts and
    seeds that all of its settings have. Raises BadInput without any."""
    by_steps: dict[int, list[Job]] = {}
    for job in jobs:
        by_steps.setdefault(job.generation_options.get("num_steps", savings.steps), []).append(job)
    found = [_of_steps(steps, own) for steps, own in by_steps.items()]
    found = [videos for videos in found if not videos.empty]
    if not found:
        raise BadInput("no prompt has finished videos of all settings of a step count")
    return pd.concat(found, ignore_index=True)


def _of_steps(steps: int, jobs: Sequence[Job]) -> pd.DataFrame:
    try:
        frame = collect(jobs[0])
    except BadInput:
        return pd.DataFrame()
    # By options alone: a video that another name of the same options was made under is not made again.
    wanted = {job_options(job) for job in jobs if not job.is_baseline}
    videos = frame[frame["options"].isin(wanted)].drop_duplicates(["options", "prompt", "seed"])
    whole = videos.groupby(["prompt", "seed"])["options"].transform("size") == len(wanted)
    videos = videos[whole]
    baseline = frame[(frame["method"] == jobs[0].baseline_name) & frame["prompt"].isin(videos["prompt"])]
    return videos.assign(
        model=jobs[0].model_name,
        steps=steps,
        family=videos["method"].map(family),
        vanilla_captions=baseline["caption_right"].mean() if "caption_right" in baseline else math.nan,
        psnr=pd.to_numeric(videos["psnr"]).clip(upper=PSNR_CAP_DB),
    )


def saved(videos: pd.DataFrame, savings: Savings) -> pd.DataFrame:
    """One row a model, step count and method: at every loss the share of compute saved, mean over videos and half-width
    of its 95 % interval, and by how much that is more than ``against`` saves, with its interval.

    Raises BadInput where no setting of ``against`` has half the steps.
    """
    rows = []
    for (model, steps), own in videos.groupby(["model", "steps"], sort=False):
        half = _half(own, steps, savings.against)
        left: dict[tuple[str, float], list[float]] = {}
        for (name, *video), curve in own.groupby(["family", "prompt", "seed"]):
            curve = curve[curve["flops_share"] < SKIPS_BELOW]  # one that skipped nothing made vanilla's video
            for loss in savings.losses_db:
                target = psnr_at(loss, half[tuple(video)])
                share = compute_at(target, list(curve["flops_share"]), list(curve["psnr"]))
                left.setdefault((name, loss), []).append(1 - share)
        for name in dict.fromkeys(name for name, _ in left):
            row: dict[str, Any] = {"model": model, "steps": steps, "method": name, "n": len(half)}
            row["vanilla_captions"] = own["vanilla_captions"].iloc[0]
            row["half_db"] = float(np.mean(list(half.values())))
            for loss in savings.losses_db:
                key, values = f"{loss:g}_db", left[name, loss]
                row[f"saved_{key}"], row[f"saved_{key}_ci95"] = mean_and_interval(values)
                if name != savings.against:
                    ends = (f"more_{key}", f"more_{key}_low", f"more_{key}_high")
                    row |= dict(zip(ends, paired_difference(values, left[savings.against, loss]), strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def _half(videos: pd.DataFrame, steps: int, against: str) -> Mapping[tuple[str, int], float]:
    """PSNR of half the steps, by prompt and seed."""
    lists = videos["options"].map(lambda text: json.loads(text)["reuse"].get("steps", ()))
    halves = videos[(videos["family"] == against) & (lists.map(len) == steps // 2)]
    if halves.empty:
        raise BadInput(f"losses are measured against half of the {steps} steps, and no {against} takes {steps // 2}")
    return halves.set_index(["prompt", "seed"])["psnr"].to_dict()


def table(rows: pd.DataFrame, savings: Savings, source: str) -> Table:
    keys = [(loss, f"{loss:g}_db") for loss in savings.losses_db]
    return Table(
        "Compute saved at equal loss.",
        f"Measured here ({source}). Share of the FLOPs of the same number of steps without skipping that a method "
        "saves where its loss is so many dB, mean ± half-width of the 95 % interval over n videos, and how much "
        f"more than {savings.against} that is, video by video, with its 95 % bootstrap interval. {BOOTSTRAP} PSNR is "
        "against the video of the same number of steps; loss is what a method's error adds to that of half the steps, "
        "so that as far from vanilla as those are is 3 dB. Between settings the share is interpolated, and nowhere "
        "else: a method whose cheapest setting loses less saves what that one does, and one of which every setting "
        f"loses more saves nothing. A video counts as {PSNR_CAP_DB:g} dB at most. Where vanilla seldom shows its "
        "caption, as at a number of steps that the weights were not trained for, savings say nothing.",
        (
            Column("model", "model"),
            Column("steps", "steps"),
            Column("method", "method"),
            Column("n", "n"),
            Column("vanilla's captions right", "vanilla_captions", "{:.0%}"),
            Column("PSNR of half the steps dB", "half_db", "{:.1f}"),
            *(
                Column(f"saved at {loss:g} dB", f"saved_{key}", "{:.1%}", f"± {{saved_{key}_ci95:.1%}}")
                for loss, key in keys
            ),
            *(
                Column(
                    f"more than {savings.against}, {loss:g} dB",
                    f"more_{key}",
                    "{:+.1%}",
                    f"{{more_{key}_low:+.1%}} to {{more_{key}_high:+.1%}}",
                )
                for loss, key in keys
            ),
        ),
        rows,
    )


@styled()
def draw_savings(rows: pd.DataFrame, savings: Savings) -> Figure:
    """A row a model, a column a loss: the share saved against the number of steps, a line a method. Numbers of steps at
    which most of vanilla's videos do not show their caption are left out, and named. Raises BadInput if all are."""
    blank = rows["vanilla_captions"] < LEAST_CAPTIONS
    left_out = rows[blank].drop_duplicates(["model", "steps"])
    rows = rows[~blank]
    if rows.empty:
        raise BadInput("at no number of steps does vanilla show most captions, and there is nothing to save")
    models = [model for model in savings.families if model in set(rows["model"])]
    size = (2 * COLUMN_WIDTH_IN, 1.3 * len(models) + 0.8)
    figure, panels = plt.subplots(len(models), len(savings.losses_db), figsize=size, sharey=True, squeeze=False)
    for across, model in zip(panels, models, strict=True):
        own = rows[rows["model"] == model]
        for axes, loss in zip(across, savings.losses_db, strict=True):
            key = f"saved_{loss:g}_db"
            for name, line in own.groupby("method"):
                line = line.sort_values("steps")
                colour, marker = colour_and_marker(name)
                style = LINE_STYLES[1] if name == savings.against else LINE_STYLES[0]
                ends = error_bars(line[key], line[f"{key}_ci95"], 0.0, 1.0)
                axes.errorbar(
                    line["steps"], line[key], ends, color=colour, marker=marker, ls=style, label=name, elinewidth=0.6
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(own["steps"].unique()), [f"{steps}" for steps in sorted(own["steps"].unique())])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_title(f"{model}, {loss:g} dB of loss")
        across[0].set_ylabel("FLOPs saved (mean, 95 %)")
    for axes in panels[-1]:
        axes.set_xlabel("steps of a chunk")
    every = (axes.get_legend_handles_labels() for axes in panels.flat)
    handles = {label: line for lines, labels in every for line, label in zip(lines, labels, strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(
        "What skipping saves as steps become few; at 3 dB a video is as far from vanilla's as one of half the steps "
        f"(n = {' to '.join(map(str, sorted({rows['n'].min(), rows['n'].max()})))})" + _told_blank(left_out),
        fontsize=7,
    )
    return figure


def _told_blank(left_out: pd.DataFrame) -> str:
    if left_out.empty:
        return ""
    counts = left_out.groupby("model", sort=False)["steps"].apply(lambda steps: " and ".join(map(str, sorted(steps))))
    named = ", ".join(f"{model} of {steps} steps" for model, steps in counts.items())
    return f"\nwithout {named}, of which vanilla does not show most captions"
