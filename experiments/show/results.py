"""Where tables and figures go, in which forms, and how they say where their figures come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eval.atomic import atomic_path
from eval.statistics import MIN_RESAMPLED
from experiments.job.errors import BadInput
from experiments.job.paths import ROOT, shown
from experiments.job.units import counted
from experiments.records import SCHEMA_VERSION, code_version
from experiments.show.attention import FLAG
from experiments.show.style import STYLE

matplotlib.use("Agg")  # files only; a machine without a display has no other

PUBLISHED = ROOT / "results"  # committed: no command writes there unless ``publish=true`` asks for it
TABLES = PUBLISHED / "tables"
BOOTSTRAP = (  # beside every table that has such intervals
    "Bootstrap intervals of few values are too narrow (eval/statistics.py says by how much); of fewer than "
    f"{MIN_RESAMPLED} there is none."
)
_LATEX = {"†": r"\dag{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
}
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
        spread: of its interval, "± {key_ci95}" or "{key_low} to {key_high}".
        unit: that the value is shown in, in that of the data.
        flag: of a column of booleans; a value where it is true has a ``FLAG``, and a note says why.

    The data may hold more of it: ``<key>_n``, how many the value is over, is shown where it is not the row's ``n`` and
    where there is no interval; with ``<key>_reason`` a value that is missing is "n/a", not "-".
    """

    heading: str
    key: str
    form: str = "{}"
    spread: str = ""
    unit: float = 1.0
    flag: str = ""

    def cell(self, row: pd.Series) -> tuple[str, str]:
        """The value and what is said of it."""
        value = row[self.key]
        if pd.isna(value):
            return "-" if pd.isna(row.get(f"{self.key}_reason")) else "n/a", ""
        number, flagged = row.get(f"{self.key}_n"), bool(self.flag) and bool(row[self.flag])
        if self.unit != 1:
            shown = {name: row[name] / self.unit for name in _with_ends(self.key) if name in row}
            value, row = shown[self.key], row.to_dict() | shown
        text, spread = self.form.format(value) + f" {FLAG}" * flagged, self.spread.format_map(row)
        if "nan" in spread:
            spread = ""
        count = "" if pd.isna(number) or (spread and number == row.get("n")) else f"n {number:.0f}"
        if spread.startswith("±"):
            return text, f"{spread} ({count})" if count else spread
        details = "; ".join(text for text in (spread, count) if text)
        return text, f"({details})" if details else ""


def _with_ends(key: str) -> tuple[str, ...]:
    return (key, *(f"{key}_{end}" for end in ("ci95", "low", "high")))


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
    """Those that the data have a value in, or a reason why not."""

    def known(key: str) -> bool:
        return key in data and data[key].notna().any()

    return tuple(c for c in columns if c.key in data and (known(c.key) or known(f"{c.key}_reason")))


def missing_notes(columns: Iterable[Column], data: pd.DataFrame) -> tuple[str, ...]:
    """A note for every reason why values of a column are missing, with the rows that it holds for, by their index."""
    notes = []
    for column in columns:
        reasons = data.get(f"{column.key}_reason", pd.Series(dtype=object)).dropna()
        for reason in reasons.unique():
            rows = ", ".join(map(str, reasons.index[reasons == reason]))
            notes.append(f"{column.heading} n/a: {reason} ({rows})")
    return tuple(notes)


def marks(texts: pd.Series, what: str) -> tuple[pd.Series, list[str]]:
    """A letter for every different text, row by row, and what the letters say, each note with ``what`` before it."""
    different = list(dict.fromkeys(texts.dropna()))
    letter = dict(zip(different, ascii_lowercase, strict=False))
    return texts.map(letter), [f"{what}, {letter[text]}: {text}" for text in different]


@dataclass(frozen=True)
class Destination:
    """The folder that a command's tables and figures go below; every file whole or not at all."""

    folder: Path

    def save_table(self, stem: str, *tables: Table) -> None:
        """In tables/, and printed: all in one Markdown and one LaTeX file, and a CSV each."""
        contents = {f"{stem}.md": "\n".join(map(markdown, tables)), f"{stem}.tex": latex(stem, tables)}
        for table in tables:
            if table.suffix is not None:
                contents[f"{stem}{table.suffix}.csv"] = table.data.to_csv(index=False, float_format="%.6g")
        for name, content in contents.items():
            with atomic_path(self.folder / "tables" / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
        print(contents[f"{stem}.md"])
        print(f"written in {shown(self.folder / 'tables')}: {', '.join(contents)}")

    def save_figure(self, figure: Figure, stem: str, source: str) -> None:
        """In figures/, as PNG of 256 colours, and as SVG where it shows no pictures; the same again, the same bytes.

        ``source`` says where it comes from, as ``drawn_from`` does: both files keep it as their description.
        """
        # Ticks are made only now, so that their style is needed; ids in the SVG come from content and name, not at
        # random.
        written = [".png"] if any(axes.images for axes in figure.axes) else [".png", ".svg"]
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": stem}):
            for suffix in written:
                with atomic_path(self.folder / "figures" / f"{stem}{suffix}") as temporary:
                    if suffix == ".png":
                        _palette_png(figure, temporary, source)
                    else:
                        figure.savefig(temporary, format="svg", metadata={"Date": None, "Description": source})
        plt.close(figure)
        print(f"written {shown(self.folder / 'figures' / stem)}{' and '.join(written)}")


def _palette_png(figure: Figure, path: Path, source: str) -> None:
    """A third of the bytes of a PNG of all colours, and no difference that is seen."""
    whole, told = BytesIO(), PngInfo()
    figure.savefig(whole, format="png")
    told.add_text("Description", source)
    palette = Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True, pnginfo=told)


def destination(output_dir: Path, publish: bool) -> Destination:
    """Where a command's tables and figures go: below its ``output_dir``, or into results/ where that is asked for."""
    return Destination(PUBLISHED if publish else output_dir)


def publishing(arguments: Iterable[str]) -> tuple[bool, list[str]]:
    """Whether a command's arguments ask for results/ (``publish=true``), and the others. Raises BadInput."""
    arguments = list(arguments)
    asked = [argument.partition("=")[2] for argument in arguments if argument.partition("=")[0] == "publish"]
    if any(value not in ("true", "false") for value in asked):
        raise BadInput(
            f"publish={asked[-1]} must be true, which writes into results/, or false, which writes below output_dir"
        )
    return asked[-1:] == ["true"], [argument for argument in arguments if argument.partition("=")[0] != "publish"]


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
    for place, table in enumerate(tables):
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
            label=f"tab:{stem}{f'_{place}' if table.suffix is None else table.suffix}",
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


def provenance(videos: pd.DataFrame) -> str:
    """Machine, how it was used, weights and code of a frame of videos (experiments.collect), and which version of all
    code it was collected by, as what format of records.

    Where methods were timed against a baseline, also how busy the machine was before that.
    """
    machines = _distinct(videos["environment_gpu"].fillna(videos["environment_cpu"]))
    shown = videos[videos["latency_s"].notna()] if videos["latency_s"].notna().any() else videos
    used = shown["environment_workers"].astype(str) + " x " + shown["environment_threads"].astype(str)
    torch = _distinct(videos["environment_packages"].map(lambda packages: packages["torch"]))
    return (
        f"{machines}; videos side by side x threads each: {_distinct(used)}{_load(videos)}{_otherwise(videos)}; "
        f"torch {torch}; {_version(videos)}; weights {_distinct(videos['weights'])}, code {_distinct(videos['code'])}"
    )


def drawn_from(subject: str, videos: pd.DataFrame) -> str:
    """What a figure is of, of how many videos, and their ``provenance``: its description."""
    pairs = len(videos[["prompt", "seed"]].drop_duplicates())
    number = counted(pairs, "prompt" if videos["seed"].nunique() == 1 else "video")
    return f"{subject}, n = {number}; {provenance(videos)}"


def made_by() -> str:
    """Which version of the code makes tables and figures now: one for all models, methods and metrics."""
    return f"version {code_version()}"


def _version(videos: pd.DataFrame) -> str:
    others = int((~videos["is_todays_code"]).sum())
    told = f" but for {others} of {len(videos)} videos" if others else ""
    return f"{made_by()}{told}, records of format {SCHEMA_VERSION}"


def _load(videos: pd.DataFrame) -> str:
    timed = videos[videos["baseline_latency_s"].notna()]
    if timed.empty:
        return ""
    load = pd.to_numeric(timed["environment_load_average_1min"])  # older records have none
    if load.isna().any():
        return "; load before timing not recorded"
    busy = (load > pd.to_numeric(timed["environment_cores"])).sum()
    told = f", above the machine's cores for {busy} of {len(timed)} times, which are too long" if busy else ""
    return f"; load average before timing {load.min():.1f} to {load.max():.1f}{told}"


def _otherwise(videos: pd.DataFrame) -> str:
    """Which times are left out because they were taken in another way than the others."""
    counts = videos["timed_otherwise"].dropna().value_counts().sort_index()
    told = ", ".join(f"{number} by {ways}" for ways, number in counts.items())
    return f"; times left out, taken otherwise: {told}" if told else ""


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values}))
