"""Tables of the README and the docs that quote tables of results/: ``python -m experiments.quote``.

A comment above a table of a page says which of its columns are quoted, and from where; the others are written by hand:

    <!-- quote
    table: magi_embedded_main
    columns: [compute left, PSNR dB]
    -->

Rows are found by their first cell, or what stands first in it in backticks: in the first column of
results/tables/<table>.md.

    table:    of every column that names none
    row:      the column in which rows are found, if not the first
    rows:     {first cell of the page: what stands in the table}, where they differ
    named:    how the others stand in the table, if not as in the page, with {} for the page's name
    where:    {column: value}, if several rows of the table are of one name
    nearest:  {column: number}, if none of them has it to the digit
    n:        the n that the page tells itself: cells of it do without, others say theirs
    mean:     true takes a cell's mean without its interval
    digits:   numbers of more digits behind the point are rounded to so many
    columns:  [of one name in both], or {column of the page: column of the table}, or the page's column: {column, and
              any of the above for it alone}

``check=true`` writes nothing, and fails if a page quotes what no longer stands in its table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.atomic import atomic_path
from experiments.job.errors import BadInput, command
from experiments.job.names import nearest
from experiments.job.paths import ROOT
from experiments.job.units import counted

PAGES = ("README.md", "docs/*.md")
COMMAND = "python -m experiments.quote"
_QUOTE = re.compile(r"^(?P<said><!-- quote\s(?P<spec>.*?)-->\n)(?P<table>(?:\|[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_DEFAULTS: dict[str, Any] = {
    "table": None,
    "row": None,
    "rows": {},
    "named": "{}",
    "where": {},
    "nearest": {},
    "n": None,
    "mean": False,
    "digits": None,
}
_CODE = re.compile(r"^`([^`]*)`.*$")

Cells = tuple[tuple[str, ...], ...]


@command("quote")
def main(arguments: list[str]) -> int:
    check = "check=true" in arguments
    if unknown := [each for each in arguments if each not in ("check=true", "check=false")]:
        raise BadInput(f"{unknown[0]} is no option of this command; there is check=true")
    stale = refresh(ROOT, write=not check)
    if not stale:
        print("every quoted table stands as it is in results/tables")
    elif check:
        print("\n".join(told(stale)), file=sys.stderr)
    else:
        print(f"written {', '.join(stale)}; what they say in words is not looked at")
    return 1 if stale and check else 0


def told(stale: Sequence[str]) -> list[str]:
    """Of pages that quote what has changed, a line each."""
    return [f"{page}: quotes what no longer stands in results/tables; {COMMAND} writes it" for page in stale]


def refresh(root: Path, write: bool = True) -> list[str]:
    """Quote anew all that pages quote. Returns those where it had changed, which are written if ``write``.

    Raises BadInput for a quote that names what is not there; no page is written then.
    """
    changed = {}
    for page in (page for pattern in PAGES for page in sorted(root.glob(pattern))):
        name, before = page.relative_to(root).as_posix(), page.read_text(encoding="utf-8")
        after = quoted(before, name, lambda table: _cells(root / "results" / "tables", table))
        if after != before:
            changed[name] = after
    for name, text in changed.items() if write else ():
        with atomic_path(root / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(changed)


def quoted(text: str, page: str, tables: Callable[[str], list[Cells]]) -> str:
    """A page's text with its quotes as the tables stand; ``tables`` gives those of a name, header first."""

    def table(found: re.Match[str]) -> str:
        where = f"{page}, line {text.count(chr(10), 0, found.start()) + 1}"
        try:
            spec = yaml.safe_load(found["spec"])
            lines = _filled(found["table"].splitlines(), spec, tables)
        except (BadInput, yaml.YAMLError) as error:
            raise BadInput(f"{where}: {error}") from error
        return found["said"] + "".join(line + "\n" for line in lines)

    if text.count("<!-- quote") != len(_QUOTE.findall(text)):
        raise BadInput(f"{page}: a quote's comment must begin with its line, end with -->, and a table must follow")
    return _QUOTE.sub(table, text)


def _filled(lines: Sequence[str], spec: Any, tables: Callable[[str], list[Cells]]) -> list[str]:
    """A page's table, its quoted cells anew."""
    common = _known(spec, {**_DEFAULTS, "columns": None})
    header = _split(lines[0])
    columns = common.pop("columns")
    if not isinstance(columns, (list, Mapping)):
        raise BadInput("columns must be [of one name] or {column of the page: column of the table}")
    lookups: dict[int, Callable[[str], str]] = {}
    for shown, given in columns.items() if isinstance(columns, Mapping) else zip(columns, columns, strict=True):
        if str(shown) not in header:
            raise BadInput(f"the page's table has no column {shown}; {nearest(str(shown), header)}")
        own = given if isinstance(given, Mapping) else {"column": given}
        lookups[header.index(str(shown))] = _lookup(_known(own, {**common, "column": None}), tables)
    rows = [_split(line) for line in lines[2:]]
    filled = [[lookups[place](row[0]) if place in lookups else cell for place, cell in enumerate(row)] for row in rows]
    return [*lines[:2], *("| " + " | ".join(row) + " |" for row in filled)]


def _known(given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise BadInput(f"a quote is said as key: value; {given} is not")
    for key in given:
        if key not in defaults:
            raise BadInput(f"{key} is nothing that a quote says; {nearest(str(key), list(defaults))}")
    return {**defaults, **given}


def _lookup(spec: dict[str, Any], tables: Callable[[str], list[Cells]]) -> Callable[[str], str]:
    """What gives the cell of a row of the page, by that row's first cell."""
    name, column = spec["table"], str(spec["column"])
    if name is None:
        raise BadInput(f"{column}: of which table? say table: <name>, of results/tables/<name>.md")
    wanted = {str(key): str(value) for key, value in spec["where"].items()}
    needed = [column, *wanted, *spec["nearest"], *([spec["row"]] if spec["row"] else [])]
    there = tables(name)
    fitting = [cells for cells in there if set(needed) <= set(cells[0])]
    if not fitting:
        columns = " or ".join(", ".join(cells[0]) for cells in there)
        raise BadInput(f"{name} has no table with {', '.join(needed)}; it has {columns}")
    header, *rows = fitting[0]
    place = {title: header.index(title) for title in header}  # the first of one name
    key = place[spec["row"]] if spec["row"] else 0
    renamed = {str(shown): str(own) for shown, own in spec["rows"].items()}

    def cell(first: str) -> str:
        plain = _CODE.sub(r"\1", first)
        own = renamed.get(plain) or spec["named"].format(plain)
        found = [row for row in rows if row[key] == own and all(row[place[each]] == wanted[each] for each in wanted)]
        for each, number in spec["nearest"].items():
            found = sorted(found, key=lambda row, at=place[each], to=number: abs(_number(row[at]) - to))[:1]
        if len(found) != 1:
            asked = ", ".join([f"{header[key]} {own}", *(f"{each} {value}" for each, value in wanted.items())])
            raise BadInput(f"{counted(len(found), 'row')} of {name} with {asked}; one was expected")
        value = _without_n(found[0][place[column]], spec["n"])
        return _rounded(re.split(r" [±(]", value)[0] if spec["mean"] else value, spec["digits"])

    return cell


def _rounded(cell: str, digits: int | None) -> str:
    if digits is None:
        return cell
    longer = re.compile(rf"([+-]?)\d+\.\d{{{digits + 1},}}")
    return longer.sub(lambda found: f"{float(found[0]):{'+' if found[1] else ''}.{digits}f}", cell)


def _number(cell: str) -> float:
    found = re.match(r"[+-]?\d+(?:\.\d+)?", cell)
    return float(found[0]) if found else float("inf")


def _without_n(cell: str, n: int | None) -> str:
    """A cell without its n, if that is the one that the page tells."""
    return cell.replace(f"; n {n})", ")").replace(f" (n {n})", "")


def _cells(folder: Path, name: str) -> list[Cells]:
    """The tables of a file, each its header and its rows."""
    path = folder / f"{name}.md"
    if not path.is_file():
        raise BadInput(f"no table {name}; {nearest(name, [each.stem for each in folder.glob('*.md')])}")
    tables, lines = [], path.read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        if line.startswith("| ---"):
            rest = lines[place + 1 :]
            end = next((at for at, each in enumerate(rest) if not each.startswith("|")), len(rest))
            tables.append(tuple(_split(each) for each in [lines[place - 1], *rest[:end]]))
    return tables


def _split(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip()[1:-1].split("|"))
