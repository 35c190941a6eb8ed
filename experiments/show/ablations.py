"""Table and figure of an ablation: ``python -m experiments.ablations experiment=ablation_threshold [key=value ...]``.

From finished records alone, one row a setting of conf/experiment/<name>.yaml, in its order: the options that tell the
settings of one method apart, then their figures. ``python -m experiments.sweep`` with the same arguments makes the
records. Writes to output_dir/tables/ and output_dir/figures/; ``publish=true`` into results/ instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.job.errors import BadInput, command
from experiments.job.experiment import experiment_of, jobs_of, read_experiment
from experiments.job.job import Job
from experiments.records.collect import described, finished, video_frame
from experiments.records.settings import told_apart
from experiments.records.timings import commonest_way, timed
from experiments.show import claims
from experiments.show.kv_memory import KV_USES
from experiments.show.results import (
    BOOTSTRAP,
    Column,
    Table,
    destination,
    drawn_from,
    missing_notes,
    provenance,
    publishing,
)
from experiments.show.style import COLUMN_WIDTH_IN, RANGES, colours_and_markers, error_bars, look, styled
from experiments.show.summary import missing, summarise

_COLUMNS = (
    Column("n", "n", "{:.0f}"),
    Column("compute left", "flops_share", "{:.3f}", "± {flops_share_ci95:.3f}"),
    Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}"),
    Column("latents dB", "latent_snr", "{:.2f}", "± {latent_snr_ci95:.2f}"),
    Column("identical", "identical_videos", "{:.0f}"),
    Column("SSIM", "ssim", "{:.4f}", "± {ssim_ci95:.4f}"),
    Column("LPIPS", "lpips", "{:.4f}", "± {lpips_ci95:.4f}"),
    Column("caption right", "caption_right", "{:.0%}", "{caption_right_low:.0%} to {caption_right_high:.0%}"),
    Column("bits a number", "kv_bits", "{:.3g}"),
    Column("KV MiB", "kv_mib", "{:.2f}", "± {kv_mib_ci95:.2f}"),
    Column("KV allocated MiB", "kv_allocated_mib", "{:.2f}"),
    *(Column(f"of it {name}", f"kv_{use}_mib", "{:.2f}") for use, name in KV_USES.items()),
    Column("outputs kept MiB", "forecast_mib", "{:.2f}", "± {forecast_mib_ci95:.2f}"),
    Column(
        "time compressing",
        "compression_share",
        "{:.1%}",
        "{compression_share_low:.1%} to {compression_share_high:.1%}",
    ),
)
_METRIC_COLUMNS = {"caption": "caption_right"}  # of metrics that are not named after theirs
_AXES = {"psnr": "PSNR to {}, dB", "ssim": "SSIM to {}"}  # the baseline
_SWEEP = "python -m experiments.sweep"


def settings_frame(jobs: Iterable[Job]) -> tuple[pd.DataFrame, list[str]]:
    """One row a job that has finished records, and the columns that tell the jobs apart, the method first.

    Raises BadInput if no job has any.
    """
    rows: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    found = [(job, finished(job)) for job in jobs]
    way = commonest_way(record for _, records in found for record in records)
    for job, records in found:
        if not records:
            continue
        settings.append(described(job))
        reasons = {_METRIC_COLUMNS.get(name, name): reason for name, reason in missing(records).items()}
        figures = {**dict.fromkeys(reasons, np.nan), **summarise([timed(record, way) for record in records])}
        rows.append({**settings[-1], **figures, **{f"{name}_reason": reason for name, reason in reasons.items()}})
    if not rows:
        raise BadInput(f"no finished records of this experiment; make them first with {_SWEEP}")
    return pd.DataFrame(rows), ["method", *told_apart(settings)]


def table(
    frame: pd.DataFrame, told_by: list[str], title: str, baseline: str, source: str, notes: tuple[str, ...] = ()
) -> Table:
    """What tells the settings apart, of the methods that have several, then their figures."""
    options = frame[told_by].map(_option)
    for name in told_by[1:]:  # what tells a method's settings apart says nothing of a method that has one
        alone = options.groupby("method")[name].transform("nunique") == 1
        options[name] = options[name].mask(alone, _option(None))
    return Table(
        f"{title}.",
        f"Measured here ({source}). Means over n prompts (a cell over another number says so) ± half-width of the 95 % "
        "interval, captions with their Wilson interval, time compressing as a median with its bootstrap interval. "
        f"{BOOTSTRAP} PSNR, SSIM and LPIPS are against "
        f"{baseline}'s video of the same prompt and seed, PSNR without the identical ones, which are counted. "
        "Latents dB is the signal-to-noise ratio of latents against its.",
        (*(Column(name, name) for name in told_by), *_COLUMNS),
        frame.assign(**options),
        (*notes, *missing_notes(_COLUMNS, frame.set_index(options.agg(" ".join, axis=1)))),
    )


@styled()
def draw(frame: pd.DataFrame, shown: Mapping[str, Any], title: str, baseline: str) -> Figure:
    """PSNR and SSIM against one column, a line for every combination of others; both with 95 % intervals.

    Args:
        frame: of ``settings_frame``.
        shown: ``figure`` of the experiment file: ``x`` and its ``label``, ``lines`` and what the legend calls them, and
            what an option without a value (``none``) or with another is called (``names``; ``values`` of one option
            alone). What is called "" is left out of the legend.

    Raises BadInput where no setting is compared with the baseline yet.
    """
    x, lines = shown["x"], shown["lines"]

    def shown_value(value: Any, option: str) -> str:
        names = {_option(None): shown.get("none", "none"), "True": "yes", "False": "no", **shown.get("names", {})}
        names |= {str(key): name for key, name in shown.get("values", {}).get(option, {}).items()}
        return names.get(_option(value), _option(value))

    options = [name for name in lines if name != "method"]
    values = pd.Series([tuple(map(_option, row)) for row in frame[options].to_numpy()], frame.index)
    looks = {value: place for place, value in enumerate(dict.fromkeys(values))}  # the baseline's first
    pairs = colours_and_markers(list(frame["method"]))
    frame = frame[frame["psnr"].notna()] if "psnr" in frame else frame[:0]
    if frame.empty:
        raise BadInput(f"no video but {baseline}'s, or none that differs from it; make them with {_SWEEP}")
    numeric = not pd.api.types.is_bool_dtype(frame[x]) and pd.to_numeric(frame[x], errors="coerce").notna().all()
    ticks = frame[x].map(lambda value: shown_value(value, x))
    places = {tick: place for place, tick in enumerate(dict.fromkeys(ticks))}
    figure, panels = plt.subplots(2, 1, figsize=(COLUMN_WIDTH_IN, 3.9), sharex=True)
    for axes, metric in zip(panels, ("psnr", "ssim"), strict=True):
        groups = list(frame.groupby(["method", *options], sort=False, dropna=False))
        for place, (names, group) in enumerate(groups):
            at = pd.to_numeric(group[x]) if numeric else ticks[group.index].map(places)
            if not numeric:  # side by side, or intervals hide each other
                at = at + 0.1 * (place - (len(groups) - 1) / 2)
            order = at.sort_values().index
            axes.errorbar(
                at[order],
                group.loc[order, metric],
                yerr=error_bars(group.loc[order, metric], group.loc[order, f"{metric}_ci95"], *RANGES[metric]),
                label=", ".join(filter(None, (shown_value(group[name].iloc[0], name) for name in lines))),
                elinewidth=0.6,
                **look(names[0], looks[values[group.index[0]]], pairs[names[0]]),
            )
        if not numeric:
            axes.set_xticks(range(len(places)), list(places))
        axes.set_ylabel(_AXES[metric].format(baseline))
    panels[-1].set_xlabel(shown["label"].format(baseline=baseline))
    most, fewest = frame["n"].max(), frame.get("psnr_n", frame["n"]).min()
    told = f";\nPSNR without identical videos, n = {fewest:.0f} or more" if fewest < most else ""
    panels[0].set_title(f"{title}\n(mean and 95 % interval, n = {most:.0f}{told})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=", ".join(lines.values()))
    return figure


def _option(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


@command("ablations")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    name, extra = experiment_of(arguments)
    if "figure" not in read_experiment(name, extra):  # before its jobs are made, which takes seconds
        raise BadInput(f"experiment {name} is no ablation: its file says nothing under figure")
    jobs, experiment = jobs_of(name, extra)
    frame, told_by = settings_frame(jobs)
    job, title = jobs[0], experiment["title"]
    videos = video_frame(record for each in jobs for record in finished(each))
    stem = f"{job.model_name}_{job.setting_name}_{name}"
    subject = f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames"
    notes = (*claims.notes(experiment.get("claims", []), jobs), *experiment.get("notes", []))
    to = destination(job.output_dir, publish)
    to.save_table(stem, table(frame, told_by, title, job.baseline, f"{subject}; {provenance(videos)}", notes))
    to.save_figure(draw(frame, experiment["figure"], title, job.baseline), stem, drawn_from(subject, videos))
    return 0
