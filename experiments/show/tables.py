"""The main table from records: ``python -m experiments.tables [model=magi] [setting=embedded] [output_dir=outputs]``.

Measured figures of this repository's runs of one seed (``seed=``) and one list of prompts (``prompts=``, in place of an
embedded setting's own), their paired differences, and the figures that papers report, each paper's a table of its own.
Writes Markdown, LaTeX and CSV to output_dir/tables/; ``publish=true`` writes them to results/tables/ instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from eval.statistics import mean_and_interval, median_and_interval, paired_difference, share_and_interval
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job
from experiments.job.prompts import tabled_prompts
from experiments.job.units import flop_unit
from experiments.records.collect import at_defaults, collect, default_options
from experiments.records.settings import value_text
from experiments.show.attention import FLAG, another_video, told_another_video
from experiments.show.methods import found_methods, left_out, quantities
from experiments.show.papers import paper_table, papers_of
from experiments.show.reported import method_deviation, read_reported, setting_deviation
from experiments.show.results import (
    BOOTSTRAP,
    Column,
    Table,
    destination,
    marks,
    missing_notes,
    provenance,
    publishing,
)
from experiments.show.summary import CAPTION_FLAGS, PFLOP, SEAMS, STREAMING
from experiments.show.vbench_totals import VBenchTotal, read_total


def _ends(key: str, form: str) -> str:
    return f"{{{key}_low:{form}}} to {{{key}_high:{form}}}"


def measured_columns(measured: pd.DataFrame) -> tuple[Column, ...]:
    """Of ``main_table``, what comes out before what went in; compute in the unit that fits."""
    unit, size = flop_unit(measured["pflops"].max() * PFLOP)
    return (
        Column("compute left", "compute_left", "{:.3f}", "± {compute_left_ci95:.3f}"),
        Column("speed-up", "speedup", "{:.2f}x", _ends("speedup", ".2f")),
        Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}", flag="another_video"),
        Column("latents dB", "latent_snr", "{:.2f}", "± {latent_snr_ci95:.2f}", flag="another_video"),
        Column("SSIM", "ssim", "{:.4f}", "± {ssim_ci95:.4f}", flag="another_video"),
        Column("LPIPS", "lpips", "{:.4f}", "± {lpips_ci95:.4f}", flag="another_video"),
        Column("identical", "identical_videos", "{:.0f}"),
        Column("caption right", "caption_right", "{:.0%}", _ends("caption_right", ".0%")),
        Column("latency s", "latency_s", "{:.2f}", _ends("latency_s", ".2f")),
        Column("first chunk s", "latency_first_chunk_s", "{:.2f}", _ends("latency_first_chunk_s", ".2f")),
        Column("fps", "fps", "{:.3g}", _ends("fps", ".3g")),
        Column("efficiency", "efficiency", "{:.2f}", _ends("efficiency", ".2f")),
        Column(unit, "pflops", "{:.3g}", "± {pflops_ci95:.2g}", unit=size / PFLOP),
        Column("VBench %", "vbench", "{:.2f}", _ends("vbench", ".2f")),
        Column("seam ratio", "seam_ratio", "{:.2f}", "± {seam_ratio_ci95:.2f}"),
        Column("jump px", "position_jump_pixels", "{:.2f}", "± {position_jump_pixels_ci95:.2f}"),
        Column("n", "n", "{:.0f}"),
        Column("options", "options"),
    )


_DIFFERENCES = (
    ("compute left", "compute_left", "+.3f"),
    ("time left", "time_left", "+.3f"),
    ("VBench points", "vbench", "+.2f"),
    ("PSNR dB", "psnr", "+.2f"),
    ("latents dB", "latent_snr", "+.2f"),
    ("SSIM", "ssim", "+.4f"),
    ("LPIPS", "lpips", "+.4f"),
    ("caption right", "caption_right", "+.1%"),
)
PAIRED = tuple(Column(heading, key, f"{{:{form}}}", _ends(key, form)) for heading, key, form in _DIFFERENCES)
REPORTED = (
    Column("PFLOPs", "pflops", "{:.0f}"),
    Column("compute left", "compute_left", "{:.3f}"),
    Column("latency s", "latency_s", "{:.0f}"),
    Column("speed-up", "speedup", "{:.2f}x"),
    Column("efficiency", "efficiency", "{:.2f}"),
    Column("VBench %", "vbench_percent", "{:.2f}"),
    Column("PSNR dB", "psnr_db", "{:.2f}"),
    Column("SSIM", "ssim", "{:.4f}"),
    Column("LPIPS", "lpips", "{:.4f}"),
)
_MEASURED_TEXT = (
    "here ({source}). n videos a method; a cell over another number says so. Means ± half-width of the 95 % interval "
    "over prompts (Student's t), medians with their bootstrap interval, captions with their Wilson interval. "
    f"{BOOTSTRAP} PSNR, SSIM and LPIPS are against {{baseline}}'s video of the same prompt and seed, PSNR without the "
    "identical ones; latents dB is the signal-to-noise ratio of the latents against its. Captions are checked by "
    "tracking the shape. Seam ratio is the change from frame to frame at chunk borders over that inside chunks (1: no "
    "seam), jump the worst leap of the shape at one, in pixels (0: none). "
    "Latency is the median of the timed pairs (vanilla's first by prompt, where several methods were timed beside it), "
    "speed-up the median of their ratios; efficiency is speed-up times compute left: 1 means that every FLOP saved "
    "became time saved. First chunk is from the prompt to its decoded frames, fps the video's frames over its latency: "
    "medians of all timed videos, in pairs or not."
)
_PAIRED_TEXT = (
    "prompt by prompt, the first method's minus the second's: mean difference with its 95 % bootstrap interval and "
    f"the number of prompts. {BOOTSTRAP} Compute and time left are shares of {{baseline}}'s; to {{baseline}} itself "
    "PSNR, latents dB, SSIM and LPIPS have no difference, for it is what they compare with. Methods that leave "
    "different compute are compared at equal compute by experiments.figures (reuse_curve)."
)


def of_table(frame: pd.DataFrame, config: DictConfig) -> pd.DataFrame:
    """Videos of the configuration's seed and prompts: experiments of several seeds, or of other prompts, have more of
    some methods than of others. Where nothing is of an embedded setting's own prompts, those of any. Raises BadInput
    where none are left."""
    own = frame[frame["seed"] == config.seed]
    if own.empty:
        others = ", ".join(map(str, sorted(frame["seed"].unique())))
        raise BadInput(f"no finished records are of seed {config.seed}; give seed=<one of {others}>")
    prompts = tabled_prompts(config)
    listed = own if prompts is None else own[own["prompt"].isin(prompts)]
    if listed.empty and config.prompts is not None:
        raise BadInput(f"no finished records of seed {config.seed} are of these prompts; leave prompts out for all")
    return own if listed.empty else listed


def main_table(frame: pd.DataFrame, job: Job) -> pd.DataFrame:
    """One row a method of ``found_methods``, at its default options: figures, their intervals, what they are over, and
    why some are missing.

    A mean comes with ``_ci95``, the half-width of its interval, a median or share with its interval's ends (``_low``,
    ``_high``), each with how many values it is over (``_n``). ``_reason`` says why a metric has none. ``codes`` is
    there where other code than today's made some (any_code): how many each made. Raises BadInput where no method has
    records.
    """
    rows, other_codes = [], False
    options = {name: default_options(job, name) for name in found_methods(frame, job)}
    numbers = quantities({f"{job.baseline}, whether it is here or not": default_options(job, job.baseline), **options})
    for name in options:
        mine = at_defaults(frame, job, name)
        row: dict[str, float | int | str | None] = {"method": name, "n": len(mine), **numbers[name]}
        row["options"] = ", ".join(f"{key} {value_text(value)}" for key, value in numbers[name].items()) or None
        _add_mean(row, "pflops", mine["flops"] / PFLOP)
        _add_mean(row, "compute_left", mine["flops_share"])
        row["chunk_steps_computed"] = mine["computed_fraction"].mean()
        pairs = (mine["baseline_latency_s"] / mine["latency_s"]).dropna()
        if name == job.baseline:
            # Of a prompt that several methods were timed on it has as many times, which are no independent ones.
            by_video = frame.dropna(subset="baseline_latency_s").groupby(["prompt", "seed"])["baseline_latency_s"]
            _add_median(row, "latency_s", by_video.median())
        elif len(pairs):
            _add_median(row, "latency_s", mine.loc[pairs.index, "latency_s"])
            _add_median(row, "speedup", pairs)
            _add_median(row, "efficiency", pairs * mine.loc[pairs.index, "flops_share"])
        for key in STREAMING:
            _add_median(row, key, mine[key].dropna().astype(float))
        total = read_total(job.output_dir, mine["key"])
        row["vbench"], row["vbench_reason"] = np.nan, total.reason or None
        if total.percent is not None:
            row["vbench"], row["vbench_n"] = total.percent, total.num_videos
            row["vbench_low"], row["vbench_high"] = total.interval()
        for metric in [m for m in ("psnr", "latent_snr", "ssim", "lpips") if m in mine and name != job.baseline]:
            values = pd.to_numeric(mine[metric], errors="coerce")
            if metric == "psnr" and np.isinf(values).any():
                row["identical_videos"] = int(np.isinf(values).sum())
            _add_mean(row, metric, values.replace(np.inf, np.nan))
            _add_reason(row, metric, mine, metric)
        for share in [f"caption_{flag}" for flag in CAPTION_FLAGS if f"caption_{flag}" in mine]:
            seen = list(mine[share].dropna())
            if seen:
                row[share], row[f"{share}_low"], row[f"{share}_high"] = share_and_interval(seen)
                row[f"{share}_n"] = len(seen)
        _add_reason(row, "caption_right", mine, "caption")
        for seam in [name for name in SEAMS if f"caption_{name}" in mine]:
            _add_mean(row, seam, pd.to_numeric(mine[f"caption_{seam}"]))
        row["another_video"] = another_video(job, options[name])
        row["deviations"] = method_deviation(job.model_name, name, options[name])
        row["codes"] = ", ".join(
            f"{code} {n}" for code, n in mine["code"].value_counts(sort=False).sort_index().items()
        )
        other_codes |= not mine["is_todays_code"].all()
        rows.append(row)
    if not rows:
        names = ", ".join(sorted(set(frame["method"])))
        raise BadInput(f"there are records, of {names}, but none at a method's default options; run those first")
    table = pd.DataFrame(rows).set_index("method")
    return table if other_codes else table.drop(columns="codes")


def _add_mean(row: dict, key: str, values: pd.Series) -> None:
    known = values.dropna()
    if len(known):
        row[key], row[f"{key}_ci95"] = mean_and_interval(list(known))
        row[f"{key}_n"] = len(known)


def _add_median(row: dict, key: str, values: pd.Series) -> None:
    if len(values):
        row[key], row[f"{key}_low"], row[f"{key}_high"] = median_and_interval(list(values))
        row[f"{key}_n"] = len(values)


def _add_reason(row: dict, key: str, videos: pd.DataFrame, metric: str) -> None:
    """Why a metric is missing, in most of the videos that say so."""
    if f"{metric}_reason" in videos and videos[f"{metric}_reason"].notna().any():
        row.setdefault(key, np.nan)
        row[f"{key}_reason"] = videos[f"{metric}_reason"].mode()[0]


def paired_table(frame: pd.DataFrame, job: Job, methods: list[str]) -> pd.DataFrame:
    """One row for every two methods: mean differences over the prompts and seeds that both have, ends of their 95 %
    intervals (``_low``, ``_high``), and how many pairs there are (``_n``)."""
    at = {name: at_defaults(frame, job, name) for name in methods}
    videos = {name: _comparable(mine, name == job.baseline) for name, mine in at.items()}
    totals = {name: read_total(job.output_dir, mine["key"]) for name, mine in at.items()}
    rows = []
    for other, name in itertools.combinations(methods, 2):
        both = videos[name].merge(videos[other], on=["prompt", "seed"], suffixes=("", "_other"))
        row: dict[str, float | int | str] = {"method": name, "against": other}
        for _, key, _ in _DIFFERENCES:
            if key == "vbench":
                _add_vbench(row, totals[name], totals[other])
                continue
            pairs = both[[key, f"{key}_other"]].dropna()
            if len(pairs):
                difference = paired_difference(list(pairs[key]), list(pairs[f"{key}_other"]))
                row |= dict(zip((key, f"{key}_low", f"{key}_high"), difference, strict=True))
                row[f"{key}_n"] = len(pairs)
            elif job.baseline not in (name, other):
                _add_reason(row, key, pd.concat([at[name], at[other]]), key.removesuffix("_right"))
        rows.append(row)
    return pd.DataFrame(rows)


def _comparable(videos: pd.DataFrame, is_baseline: bool) -> pd.DataFrame:
    """What is compared, a column each, and what tells videos apart; the baseline takes all of its own time."""
    nothing = pd.Series(np.nan, index=videos.index)
    columns = {key: videos.get(key, nothing) for key in ("caption_right", "psnr", "latent_snr", "ssim", "lpips")}
    columns["compute_left"] = videos["flops_share"]
    columns["time_left"] = 1.0 if is_baseline else videos["latency_s"] / videos["baseline_latency_s"]
    numbers = pd.DataFrame(columns).apply(pd.to_numeric, errors="coerce").astype(float).replace(np.inf, np.nan)
    return numbers.assign(prompt=videos["prompt"], seed=videos["seed"])


def _add_vbench(row: dict, total: VBenchTotal, other: VBenchTotal) -> None:
    row["vbench"], row["vbench_reason"] = np.nan, total.reason or other.reason or "the totals are over other prompts"
    if total.percent is not None and other.percent is not None and total.prompts == other.prompts:
        row["vbench_reason"] = None
        row["vbench"], row["vbench_low"], row["vbench_high"] = total.less(other)
        row["vbench_n"] = min(total.num_videos, other.num_videos)


def describe(
    measured: pd.DataFrame, paired: pd.DataFrame, job: Job, source: str, notes: Iterable[str] = ()
) -> list[Table]:
    """The tables of a model and setting: measured (with ``notes`` below it), paired differences, and what
    FlowCache reports, if it does."""
    reported, reported_source = read_reported(job.model_name)
    letters, deviations = marks(measured["deviations"], "Deviates")
    setting = setting_deviation(job.model_name, job.settings)
    ours, columns = measured.assign(deviates=letters).reset_index(), measured_columns(measured)
    others = list(measured.index[measured["another_video"]])
    attention = [f"{FLAG} of {', '.join(others)}: {told_another_video(job)}"] if others else []
    codes = measured.get("codes", pd.Series(dtype=object))
    by_code = ["Videos by code: " + "; ".join(f"{name} {told}" for name, told in codes.items())] if len(codes) else []
    tables = [
        Table(
            "Measured",
            _MEASURED_TEXT.format(source=source, baseline=job.baseline),
            (Column("method", "method"), *columns, Column("deviates", "deviates")),
            ours,
            (
                *attention,
                *([f"Deviates, {setting}"] if setting else []),
                *deviations,
                *by_code,
                *missing_notes(columns, measured),
                *notes,
            ),
        ),
        Table(
            "Paired differences",
            _PAIRED_TEXT.format(baseline=job.baseline),
            (Column("method", "method"), Column("against", "against"), *PAIRED),
            paired,
            tuple(attention),
            suffix="_paired",
        ),
    ]
    if not reported.empty:
        text = f"{reported_source}. Another model and setting: the columns do not compare by value."
        shown = (Column("method", "method"), *REPORTED)
        tables.append(Table("Reported:", text, shown, with_shares(reported).reset_index(), suffix=None))
    return tables


def with_shares(reported: pd.DataFrame) -> pd.DataFrame:
    """The paper's figures and what follows from them: compute left, efficiency."""
    share = reported["pflops"] / reported.loc["vanilla", "pflops"]
    return reported.assign(compute_left=share, efficiency=reported["speedup"] * share)


@command("tables")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    check_overrides(arguments)
    job = make_job(config := compose_config(arguments))
    frame = of_table(collect(job), config)
    measured = main_table(frame, job)
    paired = paired_table(frame, job, list(measured.index))
    shown = pd.concat([at_defaults(frame, job, name) for name in measured.index]).drop_duplicates("key")
    source = f"{job.model_name}, {job.setting_name} setting, seed {job.seed}; {provenance(shown)}"
    to = destination(job.output_dir, publish)
    notes = left_out(frame, measured.index)
    others = map(paper_table, papers_of(job.model_name))
    to.save_table(f"{job.model_name}_{job.setting_name}_main", *describe(measured, paired, job, source, notes), *others)
    return 0
