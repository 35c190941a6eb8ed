"""Tables of pages that quote tables of results/: the right cell, nothing by hand lost, nothing missing unsaid."""

from __future__ import annotations

import pytest

from experiments.job.errors import BadInput
from experiments.job.paths import ROOT
from experiments.show import quote
from experiments.show.quote import quoted, refresh

MAIN = (
    ("method", "n", "compute left", "PSNR dB", "speed-up"),
    ("vanilla", "64", "1.000 ± 0.000", "-", "-"),
    ("every_k", "64", "0.554 ± 0.001", "51.71 ± 2.66", "1.75x (1.65 to 1.79; n 8)"),
    ("flowcast", "64", "0.250 ± 0.000", "57.44 ± 9.91 (n 63)", "3.44x (3.10 to 3.60; n 7)"),
)
PAIRED = (
    ("of", "against", "compute left", "difference", "difference"),
    ("flowcast", "every_k", "0.25", "+13.02 (+10.73 to +15.33; n 64)", "held"),
    ("flowcast", "every_k", "0.351", "+11.34 (+8.95 to +13.82; n 64)", "held"),
    ("flowcache", "every_k", "0.25", "-5.05 (-9.99 to -0.04; n 64)", "held"),
)
TABLES = {"main": [MAIN], "paired": [MAIN[:1], PAIRED]}
PAGE = """# Page

<!-- quote {spec} -->
| method | {header} | by hand |
|---|{rule}---|
{rows}

Words.
"""


def page(spec: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return PAGE.format(spec=spec, header=" | ".join(columns), rule="---|" * len(columns), rows="\n".join(lines))


def cells(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]


def test_cells_are_taken_by_row_and_column_and_the_rest_stays():
    spec = "{table: main, columns: [PSNR dB, compute left]}"
    rows = [["`every_k` (k = 2)", "old", "", "mine"], ["vanilla", "", "", ""]]
    before = page(spec, ["compute left", "PSNR dB"], rows)
    after = quoted(before, "page.md", TABLES.__getitem__)
    assert cells(after) == [
        ["`every_k` (k = 2)", "0.554 ± 0.001", "51.71 ± 2.66", "mine"],
        ["vanilla", "1.000 ± 0.000", "-", ""],
    ]
    assert after.splitlines()[:4] == before.splitlines()[:4]
    assert after.endswith("\n\nWords.\n")
    assert quoted(after, "page.md", TABLES.__getitem__) == after


@pytest.mark.parametrize(
    ("spec", "row", "cell"),
    [
        ("{table: main, columns: {x: speed-up}}", "every_k", "1.75x (1.65 to 1.79; n 8)"),
        ("{table: main, n: 8, columns: {x: speed-up}}", "every_k", "1.75x (1.65 to 1.79)"),
        ("{table: main, n: 8, columns: {x: speed-up}}", "flowcast", "3.44x (3.10 to 3.60; n 7)"),
        ("{table: main, n: 63, columns: {x: PSNR dB}}", "flowcast", "57.44 ± 9.91"),
        ("{table: main, mean: true, columns: {x: PSNR dB}}", "flowcast", "57.44"),
        ("{table: main, columns: {x: {column: PSNR dB, digits: 1}}}", "every_k", "51.7 ± 2.7"),
        ("{table: main, digits: 1, columns: {x: {column: speed-up, digits: 0}}}", "flowcast", "3x (3 to 4; n 7)"),
        ("{table: main, rows: {ours: flowcast}, columns: {x: compute left}}", "ours", "0.250 ± 0.000"),
        ("{table: main, named: 'flow{}', columns: {x: compute left}}", "cast", "0.250 ± 0.000"),
        ("{row: against, where: {compute left: 0.25, of: flowcast}, n: 64, digits: 1, columns: {x: {table: paired, "
         "column: difference}}}", "every_k", "+13.0 (+10.7 to +15.3)"),
        ("{table: paired, row: against, where: {of: flowcache}, digits: 0, columns: {x: difference}}", "every_k",
         "-5 (-10 to -0; n 64)"),
        ("{table: paired, nearest: {compute left: 0.35}, columns: {x: difference}}", "flowcast",
         "+11.34 (+8.95 to +13.82; n 64)"),
    ],
)  # fmt: skip
def test_how_a_cell_is_found_and_told(spec, row, cell):
    assert cells(quoted(page(spec, ["x"], [[row, "", ""]]), "page.md", TABLES.__getitem__)) == [[row, cell, ""]]


@pytest.mark.parametrize(
    ("spec", "row", "told"),
    [
        ("{table: main, columns: {x: PSNR}}", "every_k", "main has no table with PSNR; it has method, n, compute left"),
        ("{table: main, columns: {y: PSNR dB}}", "every_k", "the page's table has no column y"),
        ("{table: main, columns: {x: PSNR dB}}", "every_3", "0 rows of main with method every_3; one was expected"),
        ("{table: paired, columns: {x: difference}}", "flowcast", "2 rows of paired with of flowcast; one"),
        ("{columns: {x: PSNR dB}}", "every_k", "PSNR dB: of which table?"),
        ("{table: main, colums: {x: PSNR dB}}", "every_k", "colums is nothing that a quote says; did you mean"),
        ("{table: main}", "every_k", "columns must be"),
        ("main", "every_k", "a quote is said as key: value; main is not"),
        ("{table: main, columns: {x: PSNR dB}", "every_k", "expected"),
    ],
)
def test_a_quote_of_what_is_not_there_is_told_with_its_place(spec, row, told):
    with pytest.raises(BadInput, match=r"^page\.md, line 3: ") as error:
        quoted(page(spec, ["x"], [[row, "", ""]]), "page.md", TABLES.__getitem__)
    assert told in str(error.value)


def test_a_quote_without_its_table_is_told():
    with pytest.raises(BadInput, match=r"page\.md: a quote's comment must begin with its line, end with -->"):
        quoted("<!-- quote {table: main, columns: [n]} -->\n\nno table\n", "page.md", TABLES.__getitem__)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "results" / "tables").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    table = "**Caption** (n 2).\n\n| method | PSNR dB |\n| --- | --- |\n| every_k | 51.7 |\n\nWords.\n"
    (tmp_path / "results" / "tables" / "main.md").write_text(table, encoding="utf-8")
    text = page("{table: main, columns: [PSNR dB]}", ["PSNR dB"], [["every_k", "40.0", "mine"]])
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_pages_are_written_where_a_table_changed_alone(repository):
    readme = repository / "README.md"
    before = readme.read_text(encoding="utf-8")
    assert refresh(repository, write=False) == ["README.md", "docs/results.md"]
    assert readme.read_text(encoding="utf-8") == before
    assert refresh(repository) == ["README.md", "docs/results.md"]
    assert cells(readme.read_text(encoding="utf-8")) == [["every_k", "51.7", "mine"]]
    assert refresh(repository) == []


def test_one_wrong_quote_keeps_every_page_as_it_is(repository):
    page_ = repository / "docs" / "results.md"
    page_.write_text(page_.read_text(encoding="utf-8").replace("table: main", "table: mian"), encoding="utf-8")
    before = (repository / "README.md").read_text(encoding="utf-8")
    with pytest.raises(BadInput, match=r"docs/results\.md, line 3: no table mian; did you mean main\?"):
        refresh(repository)
    assert (repository / "README.md").read_text(encoding="utf-8") == before


def test_todays_pages_quote_todays_tables(capsys):
    assert quote.main(["check=true"]) == 0, capsys.readouterr().err
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    assert text.count("<!-- quote") > 8


def test_the_command_checks_or_writes(repository, monkeypatch, capsys):
    monkeypatch.setattr(quote, "ROOT", repository)
    assert quote.main(["check=true"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        "README.md: quotes what no longer stands in results/tables; python -m experiments.quote writes it"
    )
    assert quote.main([]) == 0
    assert capsys.readouterr().out == "written README.md, docs/results.md; what they say in words is not looked at\n"
    assert quote.main(["check=true"]) == quote.main(["chek=true"]) - 2 == 0
    assert "chek=true is no option of this command; there is check=true" in capsys.readouterr().err
