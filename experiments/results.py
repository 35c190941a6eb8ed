"""Where tables and figures go, and how they say where their figures come from."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eval.atomic import atomic_path
from experiments.job import ROOT

matplotlib.use("Agg")  # files only; a machine without a display has no other

TABLES = ROOT / "results" / "tables"
FIGURES = ROOT / "results" / "figures"


def save_table(stem: str, text: str, data: pd.DataFrame, index: bool = False) -> None:
    """As Markdown and CSV in results/tables/, each whole or not at all."""
    csv = data.to_csv(index=index, float_format="%.6g")
    for suffix, content in (("md", text), ("csv", csv)):
        with atomic_path(TABLES / f"{stem}.{suffix}") as temporary:
            temporary.write_text(content)
    print(text)
    print(f"written {(TABLES / stem).relative_to(ROOT)}.md and .csv")


def table_lines(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table's lines."""
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def save_figure(figure: Figure, stem: str) -> None:
    """As PNG in results/figures/, whole or not at all."""
    path = FIGURES / f"{stem}.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", bbox_inches="tight")
    plt.close(figure)
    print(f"written {path.relative_to(ROOT)}")


def provenance(videos: pd.DataFrame) -> str:
    """Machine, how it was used, weights and code of a frame of videos (experiments.collect)."""
    machines = _distinct(videos["environment_gpu"].fillna(videos["environment_cpu"]))
    used = videos["environment_workers"].astype(str) + " x " + videos["environment_threads"].astype(str)
    torch = _distinct(videos["environment_packages"].map(lambda packages: packages["torch"]))
    return (
        f"{machines}; videos side by side x threads each: {_distinct(used)}; torch {torch}; "
        f"weights {_distinct(videos['weights'])}, code {_distinct(videos['code'])}"
    )


def _distinct(values: Iterable[object]) -> str:
    return ", ".join(sorted({str(value) for value in values}))
