"""One folder to look at the results in, with no server and no network:

``python -m experiments.report [model=magi] [setting=embedded] [output_dir=outputs] [destination=folder] [clips=n]``.

From finished records alone: the main table, measured apart from reported, what other papers report, quality against
compute, the videos of every method side by side, and where each of them reused. ``destination`` is
output_dir/report/<model>_<setting> if not given; ``clips`` limits how many prompts' videos are copied into it. The page
is report_template/.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job
from experiments.job.paths import results_folder, shown
from experiments.job.units import counted
from experiments.records import Record, RecordStore, store_of
from experiments.records.collect import at_defaults, collect, flat, read_trace
from experiments.show.attention import FLAG, another_video
from experiments.show.first_clip import first_shown
from experiments.show.methods import left_out
from experiments.show.papers import Paper, paper_table, papers_of
from experiments.show.reported import read_reported
from experiments.show.results import Column, Table, provenance
from experiments.show.style import BLACK, COMPUTED, FORECAST, HELD, RANGES, REUSED, colour_and_marker, is_hollow
from experiments.show.tables import describe, main_table

TEMPLATE = Path(__file__).with_name("report_template")
MARK = '<meta name="generator" content="experiments.show.report">'  # only a folder whose page has it is ever replaced
_LETTERS = {"compute": "c", "reuse": "r", "forecast": "f", "held": "h"}


# What the quality plot can show: key, axis title (to the baseline), whether more is better.
QUALITIES = (
    ("psnr", "PSNR to {}, dB", True),
    ("ssim", "SSIM to {}", True),
    ("lpips", "LPIPS to {} (lower is nearer)", False),
    ("caption_right", "share of captions right", True),
)
SCRIPTS = ("page", "tables", "plot", "maps", "videos")  # what a later one uses comes first


def build(job: Job, destination: Path, clips: int | None = None) -> Path:
    """Write the report of a job's model and setting and return its page. A rerun gives the same bytes.

    Args:
        job: names model, setting, weights and output_dir; every method with records at its default options is shown.
        destination: the folder; an older report there is replaced whole.
        clips: at most so many prompts with videos, spread evenly; all by default.

    Raises BadInput if there are no records, or if ``destination`` holds something else.
    """
    _check_replaceable(destination)
    frame = collect(job)
    measured = main_table(frame, job)
    source = provenance(frame)
    notes = left_out(frame, measured.index)
    ours, _, *reported = describe(measured, pd.DataFrame(), job, source, notes)  # nothing paired is shown
    papers = papers_of(job.model_name)
    _, reported_source = read_reported(job.model_name)
    store = store_of(job)
    takes = find_takes(job, frame, list(measured.index))
    shown = sorted(takes)
    if clips is not None and clips < len(shown):
        shown = [shown[i * len(shown) // clips] for i in range(clips)]
    baselines = [takes[each].get(job.baseline) for each in shown]
    data = {
        "fps": job.fps,
        "frames": job.num_frames,
        "baseline": job.baseline,
        "methods": list(measured.index),
        "looks": {
            name: look_of(name)
            for name in dict.fromkeys([*measured.index, *(name for each in reported for name in each.data["method"])])
        },
        "plot": quality_points(measured, job.baseline),
        "first": dict(zip(("clip", "frame"), first_shown(store, baselines), strict=True)),
        "clips": [
            {
                "prompt": prompt,
                "seed": seed,
                "takes": {name: _describe_take(job, store, record) for name, record in takes[prompt, seed].items()},
            }
            for prompt, seed in shown
        ],
    }
    size = [job.generation_options[side] for side in ("width", "height")]
    page = template(TEMPLATE).render(
        mark=MARK,
        style=joined(TEMPLATE / "report.css"),
        script=joined(*(TEMPLATE / f"{name}.js" for name in SCRIPTS)),
        model=job.model_name,
        setting=job.setting_name,
        size=size,
        summary=", ".join(
            (
                counted(frame["prompt"].nunique(), "prompt"),
                counted(len(measured), "method"),
                f"videos of {counted(job.num_frames, 'frame')} of {size[0]} x {size[1]} pixels",
            )
        ),
        wraps=any(record.caption for each in shown for record in takes[each].values()),
        num_clips=len(takes),
        source=source,
        notes=ours.notes,
        flagged=[note for note in ours.notes if note.startswith(FLAG)],
        actions={"computed": COMPUTED, "reused": REUSED, "forecast": FORECAST, "held": HELD},
        reported_source=reported_source,
        tables={"measured": table_cells(ours), **({"reported": table_cells(*reported)} if reported else {})},
        papers=[{"name": paper.name, "title": paper.title, **paper_cells(paper)} for paper in papers],
        data=data,
    )
    with _atomic_folder(destination) as folder:
        (folder / "videos").mkdir()
        for clip in data["clips"]:
            for name in clip["takes"]:
                key = takes[clip["prompt"], clip["seed"]][name].key
                if store.preview_path(key).is_file():
                    shutil.copyfile(store.preview_path(key), folder / _video(key))
        (folder / "index.html").write_text(page, encoding="utf-8")
    return destination / "index.html"


def template(folder: Path) -> Template:
    """A folder's page, which escapes what it is given."""
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(folder), **options).get_template("index.html")


def joined(*paths: Path) -> str:
    """Of text files, for within a page."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def look_of(method: str) -> dict[str, Any]:
    """Of a method's mark, as in the figures; black is the page's ink, which is light on a dark page."""
    colour, marker = colour_and_marker(method)
    return {
        "colour": "var(--ink)" if colour == BLACK else colour,
        "marker": marker,
        "hollow": is_hollow(method),
    }


def table_cells(table: Table) -> dict[str, Any]:
    """Headings and rows for the page, the method apart; a cell is what it sorts by (a number in full, or a letter), its
    text, and its spread."""
    _, *columns = table.shown
    rows = []
    for _, row in table.data.iterrows():
        rows.append({"method": row["method"], "cells": [table_cell(column, row) for column in columns]})
    return {"headings": [c.heading for c in columns], "rows": rows}


def table_cell(column: Column, row: pd.Series) -> dict[str, str | None]:
    text, spread = column.cell(row)
    return {"value": _full(row[column.key]), "text": text, "spread": spread}


def paper_cells(paper: Paper) -> dict[str, Any]:
    """A paper's table for the page, what is said above it, and its notes."""
    table = paper_table(paper)
    return {"table": table_cells(table), "text": table.text, "notes": table.notes}


def _full(value: Any) -> str | None:
    if pd.isna(value):
        return None
    return value if isinstance(value, str) else repr(float(value))


def quality_points(measured: pd.DataFrame, baseline: str) -> dict[str, Any]:
    """For the plot: by quality, every method's compute left, mean, and ends of its 95 % interval (None without one),
    which no mean can lie beyond."""
    qualities = []
    for key, title, more_is_better in QUALITIES:
        points = []
        for name, row in measured.iterrows():
            value = row.get(key, math.nan)
            if pd.isna(value):
                continue
            half = row.get(f"{key}_ci95", math.nan)
            low, high = row.get(f"{key}_low", value - half), row.get(f"{key}_high", value + half)
            lowest, highest = RANGES[key]
            ends = [None if pd.isna(end) else min(max(float(end), lowest), highest) for end in (low, high)]
            identical = row.get("identical_videos", math.nan) if key == "psnr" else math.nan  # without a PSNR
            videos = int(row["n"] - (0 if pd.isna(identical) else identical))
            point = {"method": name, "n": videos, "compute_left": float(row["compute_left"])}
            points.append({**point, "value": float(value), "low": ends[0], "high": ends[1]})
        if points:
            qualities.append(
                {"key": key, "title": title.format(baseline), "more_is_better": more_is_better, "points": points}
            )
    return {"qualities": qualities}


def find_takes(job: Job, frame: pd.DataFrame, methods: list[str]) -> dict[tuple[str, int], dict[str, Record]]:
    """By prompt and seed, the record of every method that has one at its default options."""
    store, takes = store_of(job), {}
    for name in methods:
        for video in at_defaults(frame, job, name).itertuples():
            record = store.find(video.key)
            if record is not None:
                takes.setdefault((video.prompt, video.seed), {})[name] = record
    return takes


def reuse_map(trace: pd.DataFrame) -> list[dict[str, Any]]:
    """By chunk, its first row and a letter for every row from there on: c computed, r reused, f forecast, h held, . not
    active."""
    chunks = []
    for _, entries in trace.groupby("chunk"):
        first = int(entries["row"].min())
        letters = ["."] * (int(entries["row"].max()) - first + 1)
        for row, action in zip(entries["row"], entries["action"], strict=True):
            letters[row - first] = _LETTERS[action]
        chunks.append({"first": first, "letters": "".join(letters)})
    return chunks


def _video(key: str) -> str:
    """Where in the folder a record's video lies."""
    return f"videos/{key}.mp4"


def _describe_take(job: Job, store: RecordStore, record: Record) -> dict[str, Any]:
    """What the page shows of one video."""
    has_trace = store.trace_path(record.key).is_file()
    return {
        "video": _video(record.key) if store.preview_path(record.key).is_file() else None,
        "computed": record.computed_fraction,
        "share": record.flops / record.baseline_flops if record.baseline_flops else None,
        "another": another_video(job, flat(record.method_config)),
        "psnr": record.metrics.get("psnr"),
        "ssim": record.metrics.get("ssim"),
        "map": reuse_map(read_trace(store, record)) if has_trace else None,
    }


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    page = folder / "index.html"
    if not page.is_file() or MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise BadInput(f"{folder} is there and is no report, so it is left alone; give another destination=<folder>")


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place once the block ends without an error."""
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)  # a folder cannot be renamed over one that has files
        os.replace(partial, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _own_options(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The job's arguments, and those of the report alone."""
    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in ("destination", "clips")}
    return [a for a in arguments if a.partition("=")[0] not in own], own


@command("report")
def main(arguments: list[str]) -> int:
    arguments, own = _own_options(arguments)
    check_overrides(arguments)
    job = make_job(compose_config(arguments))
    clips = own.get("clips")
    if clips is not None and not (clips.isdecimal() and int(clips) >= 1):
        raise BadInput(f"clips={clips} must be a whole number of at least 1: how many prompts' videos to copy")
    default = job.output_dir / "report" / f"{job.model_name}_{job.setting_name}"
    destination = results_folder(own["destination"]) if own.get("destination") else default
    page = build(job, destination, None if clips is None else int(clips))
    print(f"written {shown(page)}; open it in a browser")
    return 0
