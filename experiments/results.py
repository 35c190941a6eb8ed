"""Where tables and figures go, in which forms, and how they say where their figures come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eval.atomic import atomic_path
from experiments.job import ROOT
from experiments.style import STYLE

matplotlib.use("Agg")  # files only; a machine without a display has no other

TABLES = ROOT / "results" / "tables"
FIGURES = ROOT / "results" / "figures"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\to$"}
_LATEX |= {"±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_MOST_IN_A_COLUMN = 6  # columns of a table
_NARROW = "\\footnotesize\\setlength{\\tabcolsep}{2pt}\n"
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"  # smaller only if it is too wide


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading, key: above it, and in the data.
        form: of its value.
        spread, count: of its interval, "± {key_ci95}" or "{key_low} to {key_high}", and of how many it is over, where
            the data's row says no other; one that is not known is left out.
        missing: stands where there is no value; a column that gives it is shown even if it holds none at all.
    """

    heading: str
    key: str
    form: str = "{}"
    spread: str = ""
    count: str = ""
    missing: str = ""

    def cell(self, row: pd.Series) -> tuple[str, str]:
        """The value and what is said of it."""
        value = row[self.key]
        if pd.isna(value):
            return self.missing or "-", ""
        spread, count = (form.format_map(row) for form in (self.spread, self.count))
        known = [text for text in (spread, count) if text and "nan" not in text]
        if not known:
            details = ""
        elif known[0].startswith("±"):
            details = " ".join([known[0], *(f"({text})" for text in known[1:])])
        else:
            details = f"({'; '.join(known)})"
        return self.form.format(value), details


@dataclass(frozen=True)
class Table:
    """What is written as Markdown, LaTeX and CSV.

    Attributes:
        title, text: of the caption: what the table is, then what it shows and where that comes from.
        columns: those that are shown; see ``shown_columns``.
        data: one row a row, in full, the CSV.
        notes: below the table.
        suffix: of the CSV's name; None writes none, for data that have a file of their own.
    """

    title: str
    text: str
    columns: tuple[Column, ...]
    data: pd.DataFrame
    notes: tuple[str, ...] = ()
    suffix: str | None = ""

    @property
    def shown(self) -> tuple[Column, ...]:
        return shown_columns(self.columns, self.data)

    def cells(self) -> list[list[tuple[str, str]]]:
        """Row by row, the shown columns' values and spreads."""
        return [[column.cell(row) for column in self.shown] for _, row in self.data.iterrows()]


def shown_columns(columns: Iterable[Column], data: pd.DataFrame) -> tuple[Column, ...]:
    """Those that the data have a value in, and those that say why not."""
    return tuple(c for c in columns if c.key in data and (c.missing or data[c.key].notna().any()))


def save_table(stem: str, *tables: Table) -> None:
    """In results/tables/: all in one Markdown and one LaTeX file, and a CSV each; every file whole or not at all."""
    contents = {f"{stem}.md": "\n".join(map(markdown, tables)), f"{stem}.tex": latex(stem, tables)}
    for table in tables:
        if table.suffix is not None:
            contents[f"{stem}{table.suffix}.csv"] = table.data.to_csv(index=False, float_format="%.6g")
    for name, content in contents.items():
        with atomic_path(TABLES / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(contents[f"{stem}.md"])
    print(f"written in {TABLES.relative_to(ROOT)}: {', '.join(contents)}")


def markdown(table: Table) -> str:
    """Caption, table, notes."""
    rows = [[f"{value} {spread}".rstrip() for value, spread in row] for row in table.cells()]
    headings = [column.heading for column in table.shown]
    lines = [f"**{table.title}** {table.text}", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def latex(stem: str, tables: Iterable[Table]) -> str:
    """One table environment each, for the packages booktabs and graphicx; spreads stand below their values."""
    parts = ["% \\usepackage{booktabs,graphicx}\n"]
    for table in tables:
        rows = [
            [_escape(value) if not spread else _stacked(value, spread) for value, spread in row]
            for row in table.cells()
        ]
        headings = [_escape(column.heading) for column in table.shown]
        caption = " ".join([table.title, table.text, *(f"{note}." for note in table.notes)])
        text = pd.DataFrame(rows, columns=headings).to_latex(
            index=False,
            column_format="l" + "r" * (len(headings) - 1),
            caption=(_escape(caption), _escape(table.title)),
            label=f"tab:{stem}{table.suffix or ''}",
        )
        if len(headings) > _MOST_IN_A_COLUMN:  # both columns of a page
            text = text.replace("{table}", "{table*}")
        text = text.replace(r"\begin{tabular}", _NARROW + _FITTED + r"\begin{tabular}")
        parts.append(text.replace(r"\end{tabular}", r"\end{tabular}}"))
    return "\n".join(parts)


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _stacked(value: str, spread: str) -> str:
    parts = [rf"{{\tiny {_escape(part)}}}" for part in spread.replace("; ", ";\n").splitlines()]
    return r"\shortstack[r]{" + r"\\".join([_escape(value), *parts]) + "}"


def save_figure(figure: Figure, stem: str) -> None:
    """As PNG and SVG in results/figures/, each whole or not at all; the same figure gives the same bytes."""
    # Ticks are made only now, so that their style is needed; ids in the SVG come from content and name, not at random.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": stem}):
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            with atomic_path(FIGURES / f"{stem}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)
    plt.close(figure)
    print(f"written {(FIGURES / stem).relative_to(ROOT)}.png and .svg")


def provenance(videos: pd.DataFrame) -> str:
    """Machine, how it was used, weights and code of a frame of videos (experiments.collect)."""
    machines = _distinct(videos["environment_gpu"].fillna(videos["environment_cpu"]))
    used = videos["environment_workers"].astype(str) + " x " + videos["environment_threads"].astype(str)
    torch = _distinct(videos["environment_packages"].map(lambda packages: packages["torch"]))
    return (
        f"{machines}; videos side by side x threads each: {_distinct(used)}; torch {torch}; "
        f"weights {_distinct(videos['weights'])}, code {_distinct(videos['code'])}"
    )


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values}))
