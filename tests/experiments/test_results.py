"""Tables in three forms from one description, figures in two, and both the same bytes again."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments.show import results
from experiments.show.results import Column, Table, latex, markdown, missing_notes, provenance, save_figure, save_table
from experiments.show.style import COLUMN_WIDTH_IN, PALETTE, colour_of, family, look, marker_of, styled
from experiments.show.tables import METHODS

COLUMNS = (
    Column("method", "method"),
    Column("PSNR dB", "psnr", "{:.1f}", "± {psnr_ci95:.1f}"),
    Column("speed-up", "speedup", "{:.2f}x", "{low:.2f} to {high:.2f}"),
    Column("VBench %", "vbench", "{:.1f}"),
    Column("SSIM", "ssim", "{:.2f}", "± {ssim_ci95:.2f}"),
    Column("never", "never"),
    Column("absent", "absent"),
)
DATA = pd.DataFrame(
    {
        "method": ["a_b", "c & d"],
        "psnr": [40.0, math.nan],
        "psnr_ci95": [1.5, math.nan],
        "psnr_n": [7, 0],
        "speedup": [1.5, 2.0],
        "low": [1.2, math.nan],
        "high": [1.8, math.nan],
        "speedup_n": [8, 1],
        "vbench": [math.nan, math.nan],
        "vbench_reason": ["no scores", None],
        "ssim": [0.9, 0.8],
        "ssim_ci95": [0.1, math.nan],
        "ssim_n": [9, 9],
        "n": [9, 9],
        "never": [math.nan, math.nan],
    }
)
TABLE = Table("Measured", "here (50 % of it).", COLUMNS, DATA, ("VBench: no scores",))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    for name in ("TABLES", "FIGURES"):
        monkeypatch.setattr(results, name, tmp_path / name.lower())
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_markdown_has_intervals_counts_and_reasons():
    assert markdown(TABLE).splitlines() == [
        "**Measured** here (50 % of it).",
        "",
        "| method | PSNR dB | speed-up | VBench % | SSIM |",
        "| --- | --- | --- | --- | --- |",
        "| a_b | 40.0 ± 1.5 (n 7) | 1.50x (1.20 to 1.80; n 8) | n/a | 0.90 ± 0.10 |",
        "| c & d | - | 2.00x (n 1) | - | 0.80 (n 9) |",
        "",
        "- VBench: no scores",
    ]


def test_a_note_says_why_values_are_missing():
    data = pd.DataFrame({"lpips": [math.nan] * 3, "lpips_reason": ["no weights", None, "no weights"]}, index=[*"abc"])
    columns = (Column("LPIPS", "lpips"), Column("never", "never"))
    assert missing_notes(columns, data) == ("LPIPS n/a: no weights (a, c)",)


def videos(baseline_latency_s: list[float], load: list[float | None]) -> pd.DataFrame:
    """As of experiments.collect."""
    return pd.DataFrame(
        {
            "environment_gpu": None,
            "environment_cpu": "a CPU",
            "environment_workers": 2,
            "environment_threads": 1,
            "environment_packages": [{"torch": "2"}] * len(load),
            "environment_load_average_1min": load,
            "environment_cores": 2,
            "weights": "w",
            "code": "c",
            "baseline_latency_s": baseline_latency_s,
        }
    )


@pytest.mark.parametrize(
    ("baseline_latency_s", "load", "told"),
    [
        ([1.0, 1.0, math.nan], [0.12, 1.5, 9.0], "; load average before timing 0.1 to 1.5"),
        (
            [1.0] * 3,
            [2.0, 2.01, 7.0],  # as many as there are cores may be the run before
            "; load average before timing 2.0 to 7.0, above the machine's cores for 2 of 3 times, which are too long",
        ),
        ([1.0, 1.0], [0.12, None], "; load before timing not recorded"),
        ([math.nan], [3.0], ""),
    ],
)
def test_the_source_says_how_busy_the_machine_was_before_timing(baseline_latency_s, load, told):
    source = provenance(videos(baseline_latency_s, load))
    assert source == f"a CPU; videos side by side x threads each: 2 x 1{told}; torch 2; weights w, code c"


def test_latex_is_booktabs_with_the_same_cells_and_nothing_unescaped():
    text = latex("magi_main", [TABLE])
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrr}", r"\label{tab:magi_main}"):
        assert text.count(rule) == 1
    assert r"\caption[Measured]{Measured here (50 \% of it). VBench: no scores.}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = re.findall(r"^(.*?) \\\\$", body, re.M)
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [5, 5, 5]
    assert rows[1].startswith(r"a\_b & \shortstack[r]{40.0\\{\tiny $\pm$ 1.5 (n 7)}}")
    assert r"\shortstack[r]{1.50x\\{\tiny (1.20 to 1.80;}\\{\tiny n 8)}}" in rows[1]
    assert rows[2].startswith(r"c \& d & - & ")
    assert r"\begin{table}" in text
    assert text.count(r"\linewidth\else\width\fi}{!}{\begin{tabular}") == text.count(r"\end{tabular}}") == 1
    wide = Table("Wide", "", tuple(Column(f"{place}", "method") for place in range(7)), DATA)
    assert r"\begin{table*}" in latex("wide", [wide])
    assert body.count("{") == body.count("}")
    assert not re.search(r"(?<!\\)[%#_]", body)


def test_all_forms_are_written_and_written_again_the_same(folder):
    other = Table("Reported", "elsewhere.", (Column("method", "method"),), DATA, suffix=None)
    save_table("main", TABLE, other)
    first = contents(folder)
    assert set(first) == {"main.md", "main.tex", "main.csv"}
    assert b"**Reported** elsewhere." in first["main.md"]
    assert pd.read_csv(folder / "tables" / "main.csv")["psnr_n"].tolist() == [7, 0]  # in full, shown or not
    save_table("main", TABLE, other)
    assert contents(folder) == first


def test_a_full_disk_leaves_the_older_table_whole(folder, monkeypatch):
    save_table("main", TABLE)
    first = contents(folder)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.atomic.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_table("main", Table("Other", "numbers.", COLUMNS, DATA.head(1)))
    assert contents(folder) == first


@styled()
def drawn():
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2))
    axes.errorbar([0, 1], [1, 2], yerr=[0.1, 0.2], label="line")
    axes.imshow(np.arange(6).reshape(2, 3), extent=(0, 1, 1, 2))
    axes.fill_between([0, 1], [1, 1], [2, 2], alpha=0.2)
    axes.legend()
    return figure


def test_figures_are_the_same_bytes_again_in_both_forms(folder):
    others = plt.get_fignums()
    save_figure(drawn(), "figure")
    first = contents(folder)
    assert set(first) == {"figure.png", "figure.svg"}
    save_figure(drawn(), "figure")
    assert contents(folder) == first
    assert b"<dc:date>" not in first["figure.svg"]
    assert plt.get_fignums() == others


def test_figures_are_a_column_wide_with_readable_text(folder):
    figure = drawn()
    save_figure(figure, "figure")
    width, height = plt.imread(folder / "figures" / "figure.png").shape[1::-1]
    assert (width, height) == (round(300 * COLUMN_WIDTH_IN), 600)  # at 300 dots an inch, nothing cut off or added
    sizes = [text.get_fontsize() for axes in figure.axes for text in axes.get_xticklabels() + axes.legend_.get_texts()]
    assert min(sizes) >= 6  # points
    assert figure.axes[0].lines[0].get_color() == PALETTE[0]


def test_families_of_methods():
    names = ("flowcache_slow", "teacache_fast", "vanilla_kv", "every_k", "mine")
    assert [family(name) for name in names] == ["flowcache", "teacache", "vanilla_kv", "every_k", "mine"]


def test_every_method_of_the_table_looks_different():
    looks = {(look(name)["color"], look(name)["marker"], look(name)["fillstyle"]) for name in METHODS}
    assert len(looks) == len(METHODS)
    assert len({colour_of(name) for name in METHODS}) == len({marker_of(name) for name in METHODS}) == 6
