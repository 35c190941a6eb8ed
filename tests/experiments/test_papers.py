"""What other papers report: every file has its sources, is shown beside ours and in no table of ours, and says itself
where its figures contradict each other."""

from __future__ import annotations

import re
from html import unescape

import pandas as pd
import pytest

from experiments.job.paths import ROOT
from experiments.show import report, tables
from experiments.show.papers import DOUBT, FIGURES, PAPERS, TEXTS, Paper, paper_table, papers_of, read_paper
from experiments.show.results import latex, markdown
from tests.experiments.made_records import job_of, made

FILES = sorted(PAPERS.glob("*.csv"))
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
KNOWN = [column.key for column in FIGURES]
TOLD = {"motioncache", "scope", "ar_cache", "temp_cache", "forcing_kv", "quant_videogen"}  # papers that must be there


def numbers(rows: pd.DataFrame, key: str) -> pd.Series:
    return pd.to_numeric(rows.get(key, pd.Series(index=rows.index, dtype=float)))


def of_baseline(rows: pd.DataFrame, key: str) -> pd.Series:
    """By row, the figure of its baseline's row of the same checkpoint and setting; NaN where there is none."""
    return rows.apply(
        lambda row: numbers(
            rows[
                (rows["method"] == row["baseline"])
                & (rows["checkpoint"] == row["checkpoint"])
                & (rows["setting"] == row["setting"])
            ],
            key,
        ).max(),
        axis=1,
    )


def test_the_papers_that_are_compared_with_are_there():
    assert {path.stem for path in FILES} >= TOLD


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_has_its_source_and_a_figure(path):
    paper = read_paper(path)
    assert re.search(r"\(arXiv \d{4}\.\d{5}\)|\(CVPR 2026\)", paper.title)
    assert set(paper.rows) <= {"model", "method", *TEXTS, *KNOWN, DOUBT}
    assert paper.rows[["model", "method", *TEXTS]].notna().all(axis=None)
    assert set(paper.rows["model"]) <= set(MODELS)
    assert paper.rows["source"].str.contains(r"arXiv \d{4}\.\d{5}|CVPR 2026").all()
    figures = pd.DataFrame({key: numbers(paper.rows, key) for key in KNOWN})  # raises where one is no number
    assert figures.notna().any(axis=1).all()
    assert not paper.rows.duplicated(["model", "method", "checkpoint", "setting"]).any()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_contradiction_within_a_row_is_said(path):
    rows = read_paper(path).rows
    speedup = numbers(rows, "speedup")
    of_latency = of_baseline(rows, "latency_s") / numbers(rows, "latency_s")
    wrong_time = (of_latency / speedup - 1).abs() > 0.02
    efficiency = speedup * numbers(rows, "pflops") / of_baseline(rows, "pflops")
    assert rows[DOUBT][wrong_time | (efficiency > 1.05)].notna().all()
    assert set(rows["method"][wrong_time]) == ({"TempCache-Quant"} if path.stem == "temp_cache" else set())
    for doubt in rows[DOUBT].dropna():  # what it divides comes out as it says
        for one, other, quotient in re.findall(r"(\d+) s / (\d+) s is (\d+\.\d+)", doubt):
            assert round(int(one) / int(other), len(quotient.partition(".")[2])) == float(quotient)


def test_no_paper_is_left_out_and_no_row_of_it():
    shown = dict.fromkeys((path.stem for path in FILES), 0)
    for model in MODELS:
        for paper in papers_of(model):
            shown[paper.name] += len(paper_table(paper).data)
    assert shown == {path.stem: len(read_paper(path).rows) for path in FILES}


def test_a_table_has_the_papers_digits_and_says_what_it_doubts():
    texts = {"checkpoint": "small", "setting": "short", "hardware": "a GPU", "source": "arXiv 1, Table 2"}
    rows = [{"method": "full", "baseline": "full", "speedup": "1.00", "psnr_db": float("nan"), DOUBT: float("nan")}]
    rows += [{"method": name, "baseline": "full", "speedup": "2.50", "psnr_db": "20.10", DOUBT: "odd"} for name in "ab"]
    rows[2]["source"] = "arXiv 1, text"
    table = paper_table(Paper("one", "One (arXiv 1)", pd.DataFrame([texts | row for row in rows])))
    assert table.text.startswith("checkpoint small; setting short; hardware a GPU; baseline full. ")
    assert [column.heading for column in table.shown] == ["method", "source", "speed-up", "PSNR dB", "does not add up"]
    assert [[text for text, _ in row] for row in table.cells()] == [
        ["full", "arXiv 1, Table 2", "1.00x", "-", "-"],
        ["a", "arXiv 1, Table 2", "2.50x", "20.10", "a"],
        ["b", "arXiv 1, text", "2.50x", "20.10", "a"],
    ]
    assert table.notes == ("Does not add up, a: odd",)


@pytest.mark.parametrize("model", MODELS)
def test_the_tables_command_shows_them_after_ours(model, tmp_path, capsys):
    job = job_of(tmp_path, f"model={model}")
    made(job, "a", latency_s=1.0)
    assert tables.main([f"model={model}", f"output_dir={job.output_dir}"]) == 0
    stem = job.output_dir / "tables" / f"{model}_embedded_main"
    text, tex = (stem.with_suffix(end).read_text(encoding="utf-8") for end in (".md", ".tex"))
    ours = text.partition("**Reported")[0]
    for paper in papers_of(model):
        assert text.count(markdown(paper_table(paper))) == 1
        assert paper.title not in ours
    labels = re.findall(r"\\label\{(.*?)\}", tex)
    assert len(labels) == len(set(labels)) >= 2 + len(papers_of(model))
    csv = stem.with_suffix(".csv").read_text(encoding="utf-8")
    assert not any(paper.title in csv for paper in papers_of(model))


@pytest.mark.parametrize("model", [model for model in MODELS if papers_of(model)])
def test_the_report_page_has_a_table_of_each(model, tmp_path):
    job = job_of(tmp_path, f"model={model}")
    made(job, "a", latency_s=1.0)
    page = unescape(report.build(job, tmp_path / "page").read_text(encoding="utf-8"))
    section = page.partition('<section id="papers"')[2].partition("</section>")[0]
    for paper in papers_of(model):
        table = re.search(rf'<table id="paper-{paper.name}".*?</table>', section, re.S).group()
        assert re.findall(r'<span class="method">(.*?)</span>', table) == list(paper.rows["method"])
        assert all(note in section for note in paper_table(paper).notes)
        assert f'<span class="tag reported">reported</span> by {paper.title}' in section
    assert page.count('class="tag reported"') == len(papers_of(model)) + ('id="reported"' in page)


def test_latex_takes_every_paper():
    for path in FILES:
        text = latex("stem", [paper_table(read_paper(path))])
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
