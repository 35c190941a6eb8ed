"""Tables that were saved before (experiments.show.results), read again: the CSV's figures, and from the Markdown's
caption where they come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.show.results import TABLES


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
    def machine(self) -> str | None:
        source = self._source()
        return source[1] if len(source) > 1 else None

    @property
    def codes(self) -> tuple[str, ...]:
        """Of the code that made its videos, in the caption's order."""
        found = re.search(r"\bcode (.*)$", "; ".join(self._source()))
        return tuple(found[1].split(", ")) if found else ()

    @property
    def is_timed_on_a_busy_machine(self) -> bool:
        return any("above the machine's cores" in part for part in self._source())

    def _source(self) -> list[str]:
        found = re.search(r" here \((.*?)\)\. ", self.caption)
        return found[1].split("; ") if found else []


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
