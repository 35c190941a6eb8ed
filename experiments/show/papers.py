"""What other papers report of a model, as results/reported/papers/ holds it: a table a paper, beside ours, never in it.

A file is a paper. Its first line names it; every row has its source, checkpoint, setting, hardware and baseline, and
what does not add up in it, if anything. ``model`` is the suite's model that a row stands beside: its checkpoint's
family or, where the suite has none of that, the family of the paper's other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.show.reported import REPORTED
from experiments.show.results import Column, Table, marks

PAPERS = REPORTED / "papers"
TEXTS = ("checkpoint", "setting", "hardware", "baseline", "source")
DOUBT = "does_not_add_up"
FIGURES = (
    Column("PFLOPs", "pflops"),
    Column("latency s", "latency_s"),
    Column("speed-up", "speedup", "{}x"),
    Column("of attention", "component_speedup", "{}x"),
    Column("fps", "fps"),
    Column("KV smaller", "kv_smaller", "{}x"),
    Column("KV GB", "kv_gb"),
    Column("peak GB", "peak_gb"),
    Column("VBench %", "vbench_percent"),
    Column("PSNR dB", "psnr_db"),
    Column("SSIM", "ssim"),
    Column("LPIPS", "lpips"),
    Column("dynamic degree", "dynamic_degree"),
    Column("discontinuity", "discontinuity"),
)


@dataclass(frozen=True)
class Paper:
    """A paper's reported rows.

    Attributes:
        name: of its file.
        title: what it is, with its arXiv number if it has one.
        rows: by file order, all as text, for figures are shown with the digits that the paper gives; NaN where it has
            none.
    """

    name: str
    title: str
    rows: pd.DataFrame


def read_paper(path: Path) -> Paper:
    """One file of results/reported/papers/."""
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    return Paper(path.stem, first_line.removeprefix("# "), pd.read_csv(path, skiprows=1, dtype=str))


def papers_of(model: str) -> list[Paper]:
    """The papers that report figures of a model, each with those rows."""
    papers = []
    for path in sorted(PAPERS.glob("*.csv")):
        paper = read_paper(path)
        rows = paper.rows[paper.rows["model"] == model].reset_index(drop=True)
        if len(rows):
            papers.append(Paper(paper.name, paper.title, rows))
    return papers


def paper_table(paper: Paper) -> Table:
    """Texts that all rows share stand above the table, the others in it; doubts below it."""
    shared = [key for key in TEXTS if paper.rows[key].nunique() == 1]
    said = "; ".join(f"{key} {paper.rows[key][0]}" for key in shared)
    letters, doubts = marks(paper.rows[DOUBT], "Does not add up")
    texts = [Column(key, key) for key in TEXTS if key not in shared]
    return Table(
        f"Reported by {paper.title}:",
        f"{said}. Not measured here: the columns compare with no row of ours by value.",
        (Column("method", "method"), *texts, *FIGURES, Column("does not add up", "doubt")),
        paper.rows.assign(doubt=letters),
        tuple(doubts),
        suffix=None,
    )
