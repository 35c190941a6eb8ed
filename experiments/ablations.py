"""Table and figure of an ablation: ``python -m experiments.ablations experiment=ablation_threshold [key=value ...]``.

From finished records alone, one row a setting of conf/experiment/<name>.yaml, in its order: the options that tell the
settings of one method apart, then their figures. ``python -m experiments.sweep`` with the same arguments makes the
records. Writes Markdown and CSV to results/tables/, PNG to results/figures/.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException

from experiments.collect import video_frame
from experiments.errors import BadInput
from experiments.job import Job
from experiments.records import Record, new_record, store_of
from experiments.results import provenance, save_figure, save_table, table_lines
from experiments.summary import summarise
from experiments.sweep import experiment_of, jobs_of

# Column, its title and form, and, where it is a mean over prompts, the column of its interval's half-width.
_FIGURES = (
    ("n", "n", "{:.0f}", None),
    ("flops_share", "compute left", "{:.3f}", None),
    ("psnr", "PSNR dB", "{:.2f}", "psnr_ci95"),
    ("identical_videos", "identical", "{:.0f}", None),
    ("ssim", "SSIM", "{:.4f}", "ssim_ci95"),
    ("lpips", "LPIPS", "{:.4f}", "lpips_ci95"),
    ("caption_right", "caption right", "{:.0%}", None),
    ("kv_mib", "KV MiB", "{:.2f}", None),
    ("compression_share", "time compressing", "{:.1%}", None),
)
_AXES = {
    "psnr": "PSNR to vanilla, dB",
    "ssim": "SSIM to vanilla",
    "flops_share": "compute left (share of vanilla's FLOPs)",
}


def settings_frame(jobs: Iterable[Job]) -> tuple[pd.DataFrame, list[str]]:
    """One row a job that has finished records, and the columns that tell the jobs apart, the method first.

    Raises BadInput if no job has any.
    """
    rows: list[dict[str, Any]] = []
    options: dict[str, None] = {}
    for job in jobs:
        records = finished(job)
        if not records:
            continue
        described = flat({**job.settings, **asdict(job.method)})
        options |= dict.fromkeys(described)
        rows.append({"method": job.method_name, **described, **summarise(records)})
    if not rows:
        raise BadInput("no finished records of this experiment; make them first with python -m experiments.sweep")
    frame = pd.DataFrame(rows)
    texts = frame[list(options)].astype(str)
    varied = [name for name in options if (texts[name].groupby(frame["method"]).nunique() > 1).any()]
    return frame, ["method", *varied]


def finished(job: Job) -> list[Record]:
    """The finished records of a job's prompts."""
    store = store_of(job)
    found = (store.find(new_record(job, job.method_name, job.method, prompt).key) for prompt in job.prompts)
    return [record for record in found if record is not None]


def markdown(frame: pd.DataFrame, told_by: list[str], title: str, source: str) -> str:
    """The table with what it shows and where it comes from."""
    figures = [column for column in _FIGURES if column[0] in frame]
    rows = []
    for _, row in frame.iterrows():
        cells = [_option(row[name]) for name in told_by]
        for name, _, form, interval in figures:
            cell = "-" if pd.isna(row[name]) else form.format(row[name])
            if interval is not None and pd.notna(row.get(interval)):
                cell += f" ± {form.format(row[interval])}"
            cells.append(cell)
        rows.append(cells)
    lines = [
        f"**{title}** Measured here ({source}). Means over prompts ± half-width of the 95 % interval; PSNR, SSIM and "
        "LPIPS are against vanilla's video of the same prompt and seed, identical videos left out and counted.",
        "",
        *table_lines([*told_by, *(heading for _, heading, _, _ in figures)], rows),
    ]
    return "\n".join(lines) + "\n"


def draw(frame: pd.DataFrame, x: str, lines: list[str], title: str) -> Figure:
    """PSNR and SSIM against one column, a line for every combination of others; both with 95 % intervals."""
    frame = frame[frame["psnr"].notna()]
    numeric = pd.to_numeric(frame[x], errors="coerce").notna().all()
    places = {value: place for place, value in enumerate(dict.fromkeys(map(_option, frame[x])))}
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, metric in zip(panels, ("psnr", "ssim"), strict=True):
        for names, group in frame.groupby(lines, sort=False, dropna=False):
            at = pd.to_numeric(group[x]) if numeric else group[x].map(lambda value: places[_option(value)])
            order = at.sort_values().index
            axes.errorbar(
                at[order],
                group.loc[order, metric],
                yerr=group.loc[order, f"{metric}_ci95"],
                label=", ".join(map(_option, names)),
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
        if not numeric:
            axes.set_xticks(range(len(places)), list(places))
        axes.set_xlabel(_AXES.get(x, x))
        axes.set_ylabel(f"{_AXES[metric]} (mean and 95 % interval, n = {frame['n'].max():.0f})")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    leaves: dict[str, Any] = {}
    for name, value in options.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def _option(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: list[str]) -> int:
    try:
        name, extra = experiment_of(arguments)
        jobs, experiment = jobs_of(name, extra)
        if "figure" not in experiment:
            raise BadInput(f"experiment {name} is no ablation: its file says nothing under figure")
        frame, told_by = settings_frame(jobs)
    except (BadInput, OmegaConfBaseException) as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    job, title = jobs[0], experiment["title"]
    videos = video_frame(record for each in jobs for record in finished(each))
    stem = f"{job.model_name}_{job.setting_name}_{name}"
    source = f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames; {provenance(videos)}"
    save_table(stem, markdown(frame, told_by, title, source), frame)
    save_figure(draw(frame, experiment["figure"]["x"], experiment["figure"]["lines"], title), stem)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
