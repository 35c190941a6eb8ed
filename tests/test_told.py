"""Every figure that README and docs tell with its interval stands in a committed table, in one row."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

import pytest

from experiments.job.paths import ROOT

NUMBER = r"[+-]?\d+(?:\.\d+)?"
TOLD = (
    re.compile(rf"({NUMBER})(?: dB|%|x| %)? \(({NUMBER})%? to ({NUMBER})%?"),
    re.compile(r"(\d+\.\d+) ± (\d+\.\d+)"),
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of benchmarks, whose reports are not tables of results/.
ELSEWHERE = {("0.965", "0.944", "0.981"), ("0.949", "0.821", "0.992")}


def told(text: str) -> list[tuple[str, ...]]:
    """A mean with both ends of its interval, or with half its width, as written."""
    return [found.groups() for pattern in TOLD for found in pattern.finditer(text)]


def numbers(line: str) -> list[float]:
    return [abs(float(found)) for found in re.findall(rf"(?<![\w.]){NUMBER}", line)]


@cache
def rows() -> list[list[float]]:
    """The sizes of the numbers in each row of results/: signs turn with the order of a comparison."""
    found = [numbers(line) for path in _tables("md") for line in path.read_text(encoding="utf-8").splitlines()]
    for path in _tables("csv"):
        with path.open(encoding="utf-8", newline="") as file:
            found += [numbers(" ".join(cells)) for cells in csv.reader(file)]
    return [row for row in found if row]


def _tables(suffix: str) -> list[Path]:
    return sorted((ROOT / "results").rglob(f"*.{suffix}"))


def stands_in(row: list[float], figures: tuple[str, ...]) -> bool:
    """Whether a row has every figure, to the digits that are told; a share may be told in percent."""
    return all(
        any(
            abs(scale * number - abs(float(figure))) <= 0.5001 * _last_digit(figure)
            for number in row
            for scale in (1, 100)
        )
        for figure in figures
    )


def _last_digit(figure: str) -> float:
    return 10.0 ** -len(figure.partition(".")[2])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_with_intervals_are_those_of_a_table(page):
    missing = [
        figures
        for figures in set(told(page.read_text(encoding="utf-8"))) - ELSEWHERE
        if not any(stands_in(row, figures) for row in rows())
    ]
    assert not missing, "in no row of a table in results/: make the table, or tell its figures"


def test_pages_tell_figures():
    assert sum(len(told(page.read_text(encoding="utf-8"))) for page in PAGES) > 300


@pytest.mark.parametrize(
    ("text", "row", "found"),
    [
        ("by 7.0 dB (4.1 to 10.2)", [7.04, 4.06, 10.24], True),
        ("by 7.0 dB (4.1 to 10.2)", [7.06, 4.06, 10.24], False),
        ("by -1.5 (-1.0 to 4.2)", [1.5, 1.0, 4.2], True),
        ("92% (83% to 97%)", [0.9219, 0.83, 0.966], True),
        ("51.71 ± 2.66", [51.714, 2.6551], True),
        ("51.71 ± 2.66", [51.714, 2.664, 3.0], True),
        ("51.71 ± 2.66", [51.714, 2.67], False),
    ],
)
def test_a_figure_is_found_to_the_digits_that_are_told(text, row, found):
    ((*figures,),) = told(text)
    assert stands_in(row, tuple(figures)) == found
