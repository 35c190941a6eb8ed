"""Table and figure of a long video, chunk by chunk: ``python -m experiments.long_video [model=magi] [key=value ...]``.

From the finished records, traces and videos of ``python -m experiments.sweep experiment=long_video`` with the same
arguments, of any model: KV cache and seconds a chunk, how much of both the last chunks take over the first, likeness to
the baseline's video, whether each chunk still shows its caption, and the seam at its border. ``experiment=kv_long`` is
the same of KV selectors and stores.
Writes to output_dir/tables/ and output_dir/figures/; ``publish=true`` into results/ instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.caption_score import per_chunk
from eval.psnr import psnr
from eval.seams import seam_ratios
from eval.statistics import mean_and_interval
from eval.video_io import read_lossless
from experiments.job.errors import BadInput, command
from experiments.job.experiment import experiment_of, jobs_of
from experiments.job.job import Job, refuse_random_weights
from experiments.job.units import counted
from experiments.records import Record, store_of
from experiments.records.collect import finished, read_trace, video_frame
from experiments.records.settings import labels
from experiments.records.timings import commonest_way, timed
from experiments.show import claims
from experiments.show.results import Column, Table, destination, drawn_from, provenance, publishing
from experiments.show.reuse_curve import PSNR_CAP_DB
from experiments.show.style import COLUMN_WIDTH_IN, colours_and_markers, look, styled

NUM_COMPARED = 8  # chunks at either end of the video that the table compares
# Column, its heading and form in the table, its axis in the figure.
_FIGURES = (
    ("kv_mib", "KV MiB", ".2f", "KV in use, MiB"),
    ("seconds", "seconds a chunk", ".2f", "s a chunk"),
    ("psnr", "PSNR dB", ".1f", "PSNR to {}, dB"),
    ("caption_right", "caption shown", ".0%", "caption shown, share"),
    ("seam", "seam", ".2f", "seam at its start"),
)
_FLAT = ("kv_mib", "seconds")  # what a bounded cache keeps the same however long the video is
_OF_CHUNKS = {"kv_mib": "max", "seconds": "median"}  # the others: mean
_NO_VIDEOS = "no finished long videos; make them first with python -m experiments.sweep experiment=long_video"


def chunk_frame(jobs: list[Job]) -> pd.DataFrame:
    """One row a chunk of every finished video: setting, prompt, chunk, seconds, kv_mib, psnr, caption_right, seam.

    Raises BadInput where there is none, or none of the baseline's to compare with.
    """
    refuse_random_weights(jobs[0], "quality says")
    found = [(job, record) for job in jobs for record in finished(job)]
    references = {record.prompt: record for job, record in found if job is jobs[0]}
    way = commonest_way(record for _, record in found)
    rows = []
    told = dict(zip(map(id, jobs), labels(jobs), strict=True))
    for job, record in found:
        if record.prompt in references:
            rows += _chunks(job, told[id(job)], timed(record, way), references[record.prompt])
    if not rows:
        raise BadInput(_NO_VIDEOS)
    return pd.DataFrame(rows)


def _kv_mib(record: Record, trace: pd.DataFrame) -> pd.Series:
    """By chunk, what the caches hold as it finishes; traces of before that was told hold as much for every token."""
    last = trace.sort_values("row").groupby("chunk").last()
    if "kv_bytes" in last:
        return last["kv_bytes"] / 2**20
    return last["kv_tokens"] * (record.kv_bytes_used_peak / max(1, trace["kv_tokens"].max()) / 2**20)


def _chunks(job: Job, setting: str, record: Record, reference: Record) -> list[dict]:
    store, model = store_of(job), job.load_model()
    video, original = (read_lossless(store.video_path(r.key)) for r in (record, reference))
    first, usual = model.frames_of(1), model.chunk_frames
    starts = [0, *range(first, len(video), usual)]
    scores = per_chunk(video, record.prompt, usual, first)
    kv_mib = _kv_mib(record, read_trace(store, record))
    # The first chunk waits for its whole window; without times, none of any chunk.
    seams = seam_ratios(video, starts)
    seconds = np.diff(record.chunk_latency_s or np.full(len(starts), np.nan), prepend=np.nan)
    rows = []
    for chunk, (start, score) in enumerate(zip(starts, scores, strict=True)):
        part = slice(start, starts[chunk + 1] if chunk + 1 < len(starts) else None)
        rows.append(
            {
                "setting": setting,
                "prompt": record.prompt,
                "chunk": chunk,
                "seconds": seconds[chunk],
                "kv_mib": kv_mib[chunk],
                "psnr": min(PSNR_CAP_DB, psnr(video[part], original[part])),
                "caption_right": score.right,
                "seam": seams[chunk],
            }
        )
    return rows


def kv_frame(jobs: list[Job]) -> pd.DataFrame:
    """One row a chunk of every finished video: setting, prompt, chunk, kv_mib; traces alone, no video is read.

    Raises BadInput where there is none.
    """
    rows = []
    for job, setting in zip(jobs, labels(jobs), strict=True):
        for record in finished(job):
            by_chunk = _kv_mib(record, read_trace(store_of(job), record))
            rows += [
                {"setting": setting, "prompt": record.prompt, "chunk": chunk, "kv_mib": mib}
                for chunk, mib in by_chunk.items()
            ]
    if not rows:
        raise BadInput(_NO_VIDEOS)
    return pd.DataFrame(rows)


def ends_frame(chunks: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: each figure over the first and over the last chunks, its mean over prompts and the half-width
    of that mean's 95 % interval; of captions the range over prompts, for chunks of one video are not independent.

    Of the cache it is the most in those chunks: a window is not full in the first of them. ``_growth`` is the last
    chunks' figure over the first ones', prompt by prompt.
    """
    last = chunks["chunk"].max()
    ends = {
        "early": chunks[chunks["chunk"].between(1, NUM_COMPARED)],
        "late": chunks[chunks["chunk"] > last - NUM_COMPARED],
    }
    rows = []
    for setting in chunks["setting"].unique():
        row, found = {"setting": setting}, {}
        for end, part in ends.items():
            by_prompt = part[part["setting"] == setting].groupby("prompt")
            row["n"] = len(by_prompt)
            for column, *_ in _FIGURES:
                found[column, end] = values = by_prompt[column].agg(_OF_CHUNKS.get(column, "mean"))
                key = f"{column}_{end}"
                _add_mean(row, key, values)
                if column == "caption_right":  # a share's interval is not symmetric about it
                    del row[f"{key}_ci95"]
                    row[f"{key}_low"], row[f"{key}_high"] = values.min(), values.max()
        for column in _FLAT:
            _add_mean(row, f"{column}_growth", found[column, "late"] / found[column, "early"])
        rows.append(row)
    return pd.DataFrame(rows)


def _add_mean(row: dict, key: str, values: pd.Series) -> None:
    row[key], row[f"{key}_ci95"] = mean_and_interval(list(values.dropna()))
    row[f"{key}_n"] = values.notna().sum()


def table(chunks: pd.DataFrame, title: str, baseline: str, source: str, notes: Sequence[str] = ()) -> Table:
    """The first and the last chunks of every setting, side by side."""

    def spread(key: str, form: str) -> str:
        return f"{{{key}_low:{form}}} to {{{key}_high:{form}}}" if "caption" in key else f"± {{{key}_ci95:{form}}}"

    columns = [
        Column(f"{heading}, {end}", f"{key}_{end}", f"{{:{form}}}", spread(f"{key}_{end}", form))
        for key, heading, form, _ in _FIGURES
        for end in ("early", "late")
    ]
    columns += [
        Column(f"{heading}, late / early", f"{key}_growth", "{:.2f}", spread(f"{key}_growth", ".2f"))
        for key, heading, *_ in _FIGURES
        if key in _FLAT
    ]
    return Table(
        f"{title}.",
        f"Measured here ({source}): {counted(chunks['chunk'].max() + 1, 'chunk')}, n prompts; early are chunks 1 to "
        f"{NUM_COMPARED}, late the last {NUM_COMPARED}. Of a prompt's chunks KV is the most, seconds are the median, "
        "the others the mean; late / early is 1 where nothing grows. Then means over prompts ± half-width of the 95 % "
        "interval (Student's t), of captions with the least and the most of a prompt. PSNR is against "
        f"{baseline}'s long video, a chunk counting at most {PSNR_CAP_DB:.0f} dB. A chunk's "
        "seam is how far its first frame is from the one before, over the median of such steps within both chunks.",
        (Column("setting", "setting"), Column("n", "n"), *columns),
        ends_frame(chunks),
        tuple(notes),
    )


@styled()
def draw(chunks: pd.DataFrame, title: str, baseline: str) -> Figure:
    """A panel a figure over the chunks, a line a setting."""
    figure, panels = plt.subplots(len(_FIGURES), 1, figsize=(COLUMN_WIDTH_IN, 7), sharex=True)
    for axes, (column, *_, label) in zip(panels, _FIGURES, strict=True):
        _lines(axes, chunks, column, label.format(baseline))
    panels[-1].set_xlabel("chunk")
    panels[0].set_title(title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


@styled()
def draw_memory(chunks: pd.DataFrame, subject: str) -> Figure:
    """The KV cache in use over a long video (``kv_frame``), a line a setting."""
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.5))
    _lines(axes, chunks, "kv_mib", "KV cache in use, MiB")
    axes.set_xlabel("length generated, chunks")
    axes.set_title(f"KV memory (mean of {counted(chunks['prompt'].nunique(), 'prompt')}; {subject})")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _lines(axes: Axes, chunks: pd.DataFrame, column: str, label: str) -> None:
    seen: Counter[str] = Counter()  # settings of each method: the second is dashed and half filled
    pairs = colours_and_markers([setting.partition(", ")[0] for setting in chunks["setting"].unique()])
    for place, (setting, group) in enumerate(chunks.groupby("setting", sort=False)):
        method = setting.partition(", ")[0]
        appearance = look(method, seen[method], pairs[method])
        seen[method] += 1
        by_chunk = group.groupby("chunk")[column]
        line = by_chunk.median() if column == "seconds" else by_chunk.mean()
        every = max(1, len(line) // 8)  # markers beside each other's, for where one curve covers another
        axes.plot(line.index + 1, line, label=setting, markevery=(place * every // 3, every), **appearance)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)


@command("long_video")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    named = any(argument.startswith("experiment=") for argument in arguments)
    name, arguments = experiment_of(arguments)
    name = name if named else "long_video"
    jobs, experiment = jobs_of(name, arguments)
    if not experiment.get("by_chunk"):
        raise BadInput(f"experiment {name} has no long videos: its file says nothing under by_chunk")
    chunks = chunk_frame(jobs)
    stem = f"{jobs[0].model_name}_{jobs[0].setting_name}"
    videos = video_frame(record for job in jobs for record in finished(job))
    subject = f"{jobs[0].model_name}, {jobs[0].setting_name}"
    title, baseline = experiment["title"], jobs[0].baseline
    notes = (*claims.notes(experiment.get("claims", []), jobs), *experiment.get("notes", []))
    described = table(chunks, title, baseline, f"{subject}; {provenance(videos)}", notes)
    to, source = destination(jobs[0].output_dir, publish), drawn_from(subject, videos)
    to.save_table(f"{stem}_{name}", described)
    to.save_figure(draw(chunks, f"{title} ({subject})", baseline), f"{stem}_{name}", source)
    memory = "kv_memory" if name == "long_video" else f"{name}_memory"
    to.save_figure(draw_memory(kv_frame(jobs), subject), f"{stem}_{memory}", source)
    return 0
