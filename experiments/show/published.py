"""Tables and figures that were saved before (experiments.show.results), read again: a CSV's figures, and from the
Markdown's caption, or a figure's description, where they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.show.results import TABLES

_OTHER_PART = re.compile(r"videos side by side|torch |seed |version |weights |code |n = ")


@dataclass(frozen=True)
class Source:
    """What a caption or a description says of where its figures come from, in parts as ``provenance`` writes them.

    Attributes:
        parts: the subject first, then the machine.
    """

    parts: tuple[str, ...] = ()

    @property
    def machine(self) -> str | None:
        return self.parts[1] if len(self.parts) > 1 and not _OTHER_PART.match(self.parts[1]) else None

    @property
    def codes(self) -> tuple[str, ...]:
        """Of the code that made its videos, in the caption's order."""
        found = re.search(r"\bcode (.*)$", "; ".join(self.parts))
        return tuple(found[1].split(", ")) if found else ()

    @property
    def is_timed_on_a_busy_machine(self) -> bool:
        return any("above the machine's cores" in part for part in self.parts)


def source_of(caption: str) -> Source:
    """Of a table: "... here (subject; machine; ...). ..."; without parts where its caption names none."""
    found = re.search(r" here \((.*?)\)(?:\. |: )", caption)
    return described_source(found[1]) if found else Source()


def described_source(description: str) -> Source:
    """Of a figure, whose description is nothing else."""
    return Source(tuple(description.split("; ")))


@dataclass(frozen=True)
class Published:
    """A table of results/tables.

    Attributes:
        path: of its Markdown.
        data: the CSV's rows.
        caption, headings: of the Markdown's first table; empty where there is no Markdown.
    """

    path: Path
    data: pd.DataFrame
    caption: str
    headings: tuple[str, ...]

    @property
    def baseline(self) -> str | None:
        """Whose videos the others are compared with."""
        found = re.search(r"(?:against|of) (\w+)'s video", self.caption)
        return found[1] if found else None

    @property
    def source(self) -> Source:
        return source_of(self.caption)


def read_published(stem: str, ending: str = "") -> Published | None:
    """The table ``<stem><ending>.csv`` with the caption of ``<stem>.md``, beside which it was saved; None if there is
    no such CSV."""
    data, text = TABLES / f"{stem}{ending}.csv", TABLES / f"{stem}.md"
    if not data.is_file():
        return None
    lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
    heading = next((line for line in lines if line.startswith("| ")), "")
    cells = tuple(cell.strip() for cell in heading.strip("| ").split(" | ")) if heading else ()
    return Published(text, pd.read_csv(data), lines[0] if lines else "", cells)
