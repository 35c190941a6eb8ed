"""The main table from records: ``python -m experiments.tables [model=magi] [setting=embedded] [output_dir=outputs]``.

Measured figures of this repository's runs beside the figures the paper reports, each marked as what it is. Writes
Markdown and CSV to results/tables/.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np
import pandas as pd

from eval.statistics import mean_and_interval, median_and_interval, paired_difference, share_and_interval
from experiments.cli import check_overrides, compose_config
from experiments.collect import canonical, collect
from experiments.errors import BadInput
from experiments.job import make_job, make_method
from experiments.reported import read_reported
from experiments.results import provenance, save_table, table_lines
from experiments.summary import CAPTION_FLAGS

METHODS = (
    "vanilla",
    "vanilla_causal",
    "vanilla_kv",
    "teacache_slow",
    "teacache_fast",
    "flowcache_slow",
    "flowcache_fast",
)
_TERA = 1e12
_CAPTIONS = ["caption_right", "caption_right_vanilla"]
_MEASURED = [
    "method",
    "n",
    "threshold",
    "TFLOPs",
    "compute left",
    "latency s",
    "speed-up (95 %, pairs)",
    "efficiency",
    "PSNR dB",
    "SSIM",
    "LPIPS",
    "identical",
    "caption right",
    "against vanilla",
]
_REPORTED = [
    "method",
    "PFLOPs",
    "compute left",
    "speed-up",
    "latency s",
    "efficiency",
    "VBench %",
    "PSNR dB",
    "SSIM",
    "LPIPS",
]


def main_table(frame: pd.DataFrame, model: str, setting: str, methods: tuple[str, ...] = METHODS) -> pd.DataFrame:
    """One row a method, at its default options: n, means with half-widths of 95 % intervals, medians of pairs."""
    rows = []
    originals = frame[frame["method"] == "vanilla"]
    for name in methods:
        options = _options(name, model, setting)
        mine = frame[(frame["method"] == name) & (frame["options"] == canonical(options))]
        if mine.empty:
            continue
        row: dict[str, float | int | str] = {"method": name, "n": len(mine)}
        row["threshold"] = options.get("threshold", float("nan"))
        row["tflops"] = mine["flops"].mean() / _TERA
        row["compute_left"] = mine["flops_share"].mean()
        row["chunk_steps_computed"] = mine["computed_fraction"].mean()
        pairs = (mine["baseline_latency_s"] / mine["latency_s"]).dropna()
        if name == "vanilla":
            row["latency_s"] = frame["baseline_latency_s"].median()
        elif len(pairs):
            row["latency_s"] = mine.loc[pairs.index, "latency_s"].median()
            row["speedup"], row["speedup_low"], row["speedup_high"] = median_and_interval(list(pairs))
            row["speedup_pairs"] = len(pairs)
            row["efficiency"] = (pairs * mine.loc[pairs.index, "flops_share"]).median()
        for metric in [m for m in ("psnr", "ssim", "lpips") if m in mine]:
            values = pd.to_numeric(mine[metric], errors="coerce")
            if metric == "psnr" and np.isinf(values).any():
                row["identical_videos"] = int(np.isinf(values).sum())
            values = values.replace(np.inf, np.nan).dropna()
            if name != "vanilla" and len(values):
                row[metric], row[f"{metric}_ci95"] = mean_and_interval(list(values))
        for flag in CAPTION_FLAGS:
            seen = mine[f"caption_{flag}"].dropna() if f"caption_{flag}" in mine else []
            if len(seen):
                share = f"caption_{flag}"
                row[share], row[f"{share}_low"], row[f"{share}_high"] = share_and_interval(list(seen))
        if name != "vanilla" and "caption_right" in mine:
            both = mine.merge(originals, on=["prompt", "seed"], suffixes=("", "_vanilla")).dropna(subset=_CAPTIONS)
            if len(both):
                difference = paired_difference(*(list(both[column].astype(float)) for column in _CAPTIONS))
                for end, value in zip(("", "_low", "_high"), difference, strict=True):
                    row[f"caption_right_difference{end}"] = value
        rows.append(row)
    if not rows:
        raise BadInput(f"there are records, but none of {', '.join(methods)} at its default options; run those first")
    return pd.DataFrame(rows).set_index("method")


def markdown(measured: pd.DataFrame, reported: pd.DataFrame, reported_source: str, source: str) -> str:
    """Both tables, one above the other, with provenance."""
    ours = []
    for name, row in measured.iterrows():
        speed = "-"
        if pd.notna(row.get("speedup")):
            ends = f"{row['speedup_low']:.2f}-{row['speedup_high']:.2f}"
            speed = f"{row['speedup']:.2f}x ({ends}, {row['speedup_pairs']:.0f})"
        cells = [
            name,
            f"{row['n']:.0f}",
            _cell(row.get("threshold"), "{:.4g}"),
            f"{row['tflops']:.3f}",
            f"{row['compute_left']:.3f}",
            _cell(row.get("latency_s"), "{:.2f}"),
            speed,
            _cell(row.get("efficiency"), "{:.2f}"),
            *(
                _with_interval(row, metric, form)
                for metric, form in (("psnr", "{:.2f}"), ("ssim", "{:.4f}"), ("lpips", "{:.4f}"))
            ),
            _cell(row.get("identical_videos"), "{:.0f}"),
            _share(row, "caption_right", "{:.0%}"),
            _share(row, "caption_right_difference", "{:+.1%}"),
        ]
        ours.append(cells)
    papers = []
    for name, row in reported.iterrows():
        share = row["pflops"] / reported.loc["vanilla", "pflops"]
        cells = [name, f"{row['pflops']:.0f}", f"{share:.3f}", f"{row['speedup']:.2f}x", f"{row['latency_s']:.0f}"]
        cells += [f"{row['speedup'] * share:.2f}", f"{row['vbench_percent']:.2f}"]
        cells += [_cell(row[k], "{:.4g}") for k in ("psnr_db", "ssim", "lpips")]
        papers.append(cells)
    lines = [
        f"**Measured** here ({source}); means ± half-width of the 95 % interval over prompts.",
        "PSNR, SSIM and LPIPS are against vanilla's video of the same prompt and seed, PSNR without identical ones.",
        "Captions are checked by tracking the shape: share right with its Wilson interval, and the paired difference",
        "to vanilla with its bootstrap interval. Latency is the median of the timed pairs on a machine with nothing",
        "else to do, speed-up the median of their ratios with its bootstrap interval; efficiency is speed-up times",
        "compute left: 1 means that every FLOP saved became time saved.",
        "",
        *table_lines(_MEASURED, ours),
        "",
        f"**Reported**: {reported_source}. Another model and setting: the columns do not compare by value.",
        "",
        *table_lines(_REPORTED, papers),
    ]
    return "\n".join(lines) + "\n"


def _options(name: str, model: str, setting: str) -> dict[str, object]:
    """The method's options as its YAML and tuned values give them."""
    config = compose_config([f"model={model}", f"setting={setting}", f"method={name}"])
    return asdict(make_method(config.method))


def _cell(value: object, form: str) -> str:
    return "-" if value is None or pd.isna(value) else form.format(value)


def _share(row: pd.Series, column: str, form: str) -> str:
    if pd.isna(row.get(column)):
        return "-"
    ends = (form.format(row[f"{column}_{end}"]) for end in ("low", "high"))
    return f"{form.format(row[column])} ({' to '.join(ends)})"


def _with_interval(row: pd.Series, metric: str, form: str) -> str:
    if metric not in row or pd.isna(row[metric]):
        return "-"
    return f"{form.format(row[metric])} ± {form.format(row[f'{metric}_ci95'])}"


def main(arguments: list[str]) -> int:
    try:
        check_overrides(arguments)
        job = make_job(compose_config(arguments))
        frame = collect(job)
        measured = main_table(frame, job.model_name, job.setting_name)
    except BadInput as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    source = f"{job.model_name}, {job.setting_name} setting; {provenance(frame)}"
    text = markdown(measured, *read_reported(job.model_name), source)
    save_table(f"{job.model_name}_{job.setting_name}_main", text, measured, index=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
