"""Table and figure of a long video, chunk by chunk: ``python -m experiments.long_video [model=magi] [key=value ...]``.

From the finished records, traces and videos of ``python -m experiments.sweep experiment=long_video`` with the same
arguments: KV cache and seconds a chunk, likeness to vanilla's video, and whether each chunk still shows its caption.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from statistics import median

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException

from eval.caption_score import per_chunk
from eval.psnr import psnr
from eval.video_io import read_lossless
from experiments.ablations import finished
from experiments.collect import video_frame
from experiments.errors import BadInput
from experiments.figures import PSNR_CAP_DB
from experiments.job import Job, refuse_random_weights
from experiments.records import Record, RecordStore
from experiments.results import provenance, save_figure, save_table, table_lines
from experiments.sweep import jobs_of

NUM_COMPARED = 8  # chunks at either end of the video that the table compares
_PANELS = (
    ("kv_mib", "KV cache in use, MiB"),
    ("seconds", "seconds a chunk (median of prompts)"),
    ("psnr", "PSNR to vanilla, dB (mean of prompts)"),
    ("caption_right", "chunks that show their caption (share)"),
)


def chunk_frame(jobs: list[Job]) -> pd.DataFrame:
    """One row a chunk of every finished video: setting, prompt, chunk, seconds, kv_mib, psnr, caption_right.

    Raises BadInput where there is none, or none of vanilla's to compare with.
    """
    refuse_random_weights(jobs[0], "quality says")
    references = {record.prompt: record for record in finished(jobs[0])}
    rows = []
    for job in jobs:
        for record in finished(job):
            if record.prompt in references:
                rows += _chunks(job, record, references[record.prompt])
    if not rows:
        raise BadInput(
            "no finished long videos; make them first with python -m experiments.sweep experiment=long_video"
        )
    return pd.DataFrame(rows)


def _chunks(job: Job, record: Record, reference: Record) -> list[dict]:
    store, model = RecordStore(job.output_dir), job.load_model()
    budget = asdict(job.method)["kv_budget"]
    name = job.method_name + (f", {budget}" if budget else "")
    video, original = (read_lossless(store.video_path(r.key)) for r in (record, reference))
    first, usual = model.frames_of(1), model.chunk_frames
    starts = [0, *range(first, len(video), usual)]
    scores = per_chunk(video, record.prompt, usual, first)
    trace = pd.read_parquet(store.trace_path(record.key))
    tokens = trace.sort_values("row").groupby("chunk")["kv_tokens"].last()
    mib_per_token = record.kv_bytes_used_peak / max(1, tokens.max()) / 2**20
    rows = []
    for chunk, (start, score) in enumerate(zip(starts, scores, strict=True)):
        part = slice(start, starts[chunk + 1] if chunk + 1 < len(starts) else None)
        since = record.chunk_latency_s[chunk - 1] if chunk else np.nan  # the first chunk waits for its whole window
        rows.append(
            {
                "setting": name,
                "prompt": record.prompt,
                "chunk": chunk,
                "seconds": record.chunk_latency_s[chunk] - since,
                "kv_mib": tokens[chunk] * mib_per_token,
                "psnr": min(PSNR_CAP_DB, psnr(video[part], original[part])),
                "caption_right": score.right,
            }
        )
    return rows


def markdown(chunks: pd.DataFrame, title: str, source: str) -> str:
    """The first and the last chunks of every setting, side by side."""
    last = chunks["chunk"].max()
    early = chunks[chunks["chunk"].between(1, NUM_COMPARED)]
    late = chunks[chunks["chunk"] > last - NUM_COMPARED]
    rows = []
    for setting in chunks["setting"].unique():
        ends = [part[part["setting"] == setting] for part in (early, late)]
        cells = [setting]
        for column, form in (
            ("kv_mib", "{:.2f}"),
            ("seconds", "{:.2f}"),
            ("psnr", "{:.1f}"),
            ("caption_right", "{:.0%}"),
        ):
            average = median if column == "seconds" else np.mean
            cells.append(" → ".join(form.format(average(end[column])) for end in ends))
        rows.append(cells)
    headings = ["setting", "KV MiB", "seconds a chunk", "PSNR dB", "chunks that show their caption"]
    lines = [
        f"**{title}** Measured here ({source}): {last + 1} chunks, {chunks['prompt'].nunique()} prompts. "
        f"Each cell: chunks 1 to {NUM_COMPARED}, then the last {NUM_COMPARED} (median seconds, mean of the others). "
        f"PSNR is against vanilla's long video, a chunk counting at most {PSNR_CAP_DB:.0f} dB.",
        "",
        *table_lines(headings, rows),
    ]
    return "\n".join(lines) + "\n"


def draw(chunks: pd.DataFrame, title: str) -> Figure:
    """Four panels over the chunks, a line a setting."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for axes, (column, label) in zip(panels.flat, _PANELS, strict=True):
        for setting, group in chunks.groupby("setting", sort=False):
            by_chunk = group.groupby("chunk")[column]
            line = by_chunk.median() if column == "seconds" else by_chunk.mean()
            axes.plot(line.index, line, label=setting, linewidth=1.2)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("chunk")
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def main(arguments: list[str]) -> int:
    try:
        jobs, experiment = jobs_of("long_video", arguments)
        chunks = chunk_frame(jobs)
    except (BadInput, OmegaConfBaseException) as error:
        print(f"long_video: {error}", file=sys.stderr)
        return 2
    stem = f"{jobs[0].model_name}_{jobs[0].setting_name}_long_video"
    source = provenance(video_frame(record for job in jobs for record in finished(job)))
    save_table(stem, markdown(chunks, experiment["title"], source), chunks)
    save_figure(draw(chunks, experiment["title"]), stem)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
