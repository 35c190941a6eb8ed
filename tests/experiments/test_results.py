"""Tables in three forms from one description, figures in two, and both the same bytes again."""

from __future__ import annotations

import math
import re
from io import BytesIO
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from experiments.job.compose import baselines
from experiments.job.experiment import listed_methods
from experiments.records import code_version
from experiments.show import style
from experiments.show.methods import family, known_methods
from experiments.show.results import (
    Column,
    Destination,
    Table,
    drawn_from,
    latex,
    markdown,
    missing_notes,
    provenance,
)
from experiments.show.style import COLUMN_WIDTH_IN, PALETTE, STYLE, colour_and_marker, look, styled

SOURCE = "magi, embedded, n = 8 prompts; a CPU"
OF = f"version {code_version()}, records of format 3"
FAMILIES = len(style.COLOURS) * len(style.MARKERS)  # that look different, baselines aside
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
            "is_todays_code": True,
            "latency_s": 1.0,
            "timed_otherwise": None,
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
    assert source == f"a CPU; videos side by side x threads each: 2 x 1{told}; torch 2; {OF}; weights w, code c"


def test_the_source_says_which_version_of_all_code_and_how_many_videos_are_of_another():
    frame = videos([1.0, 1.0], [1.0, 1.0]).assign(is_todays_code=[True, False])
    assert f"; torch 2; version {code_version()} but for 1 of 2 videos, records of format 3; w" in provenance(frame)


@pytest.mark.parametrize(
    ("prompts", "seeds", "told"), [("aab", [1, 1, 1], "2 prompts"), ("aaab", [1, 2, 1, 1], "3 videos")]
)
def test_a_figures_description_counts_each_video_once(prompts, seeds, told):
    frame = videos([1.0] * len(seeds), [1.0] * len(seeds)).assign(prompt=[*prompts], seed=seeds)
    assert drawn_from("magi, embedded", frame) == f"magi, embedded, n = {told}; {provenance(frame)}"


def test_a_figures_files_keep_where_it_comes_from(tmp_path):
    source = "magi, embedded, n = 8 prompts; a CPU with <&> in its name; version 0123456789abcdef"
    Destination(tmp_path).save_figure(drawn(), "figure", source)
    assert Image.open(tmp_path / "figures" / "figure.png").text == {"Description": source}
    svg = (tmp_path / "figures" / "figure.svg").read_text(encoding="utf-8")
    assert f"<dc:description>{escape(source)}</dc:description>" in svg


def test_the_source_says_which_times_are_left_out():
    frame = videos([1.0, 1.0, math.nan], [1.0, 1.0, 1.0])
    frame["environment_workers"], frame["latency_s"] = [2, 2, 1], [1.0, 1.0, None]
    frame["timed_otherwise"] = [None, None, "1 worker x 2 threads, a CPU"]
    told = "; times left out, taken otherwise: 1 by 1 worker x 2 threads, a CPU; torch 2"
    assert f"threads each: 2 x 1; load average before timing 1.0 to 1.0{told}" in provenance(frame)
    assert "x threads each: 1 x 1, 2 x 1" in provenance(frame.assign(latency_s=None, timed_otherwise=None))


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


def test_all_forms_are_written_and_written_again_the_same(tmp_path):
    to = Destination(tmp_path)
    other = Table("Reported", "elsewhere.", (Column("method", "method"),), DATA, suffix=None)
    to.save_table("main", TABLE, other)
    first = contents(tmp_path)
    assert set(first) == {"main.md", "main.tex", "main.csv"}
    assert b"**Reported** elsewhere." in first["main.md"]
    assert pd.read_csv(tmp_path / "tables" / "main.csv")["psnr_n"].tolist() == [7, 0]  # in full, shown or not
    to.save_table("main", TABLE, other)
    assert contents(tmp_path) == first


def test_a_full_disk_leaves_the_older_table_whole(tmp_path, monkeypatch):
    to = Destination(tmp_path)
    to.save_table("main", TABLE)
    first = contents(tmp_path)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.atomic.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        to.save_table("main", Table("Other", "numbers.", COLUMNS, DATA.head(1)))
    assert contents(tmp_path) == first


@styled()
def drawn():
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2))
    axes.errorbar([0, 1], [1, 2], yerr=[0.1, 0.2], label="line")
    axes.fill_between([0, 1], [1, 1], [2, 2], alpha=0.2)
    axes.legend()
    return figure


def test_figures_are_the_same_bytes_again_in_both_forms(tmp_path):
    to, others = Destination(tmp_path), plt.get_fignums()
    to.save_figure(drawn(), "figure", SOURCE)
    first = contents(tmp_path)
    assert set(first) == {"figure.png", "figure.svg"}
    to.save_figure(drawn(), "figure", SOURCE)
    assert contents(tmp_path) == first
    assert b"<dc:date>" not in first["figure.svg"]
    assert plt.get_fignums() == others


def test_pictures_are_kept_once_and_in_few_bytes(tmp_path, capsys):
    figure = drawn()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    figure.axes[0].imshow(noise, extent=(0, 1, 1, 2))
    whole = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(whole, format="png")
    Destination(tmp_path).save_figure(figure, "figure", SOURCE)
    assert set(contents(tmp_path)) == {"figure.png"}  # an SVG would hold the same pixels once more
    assert capsys.readouterr().out.endswith("figure.png\n")
    saved = BytesIO(contents(tmp_path)["figure.png"])
    assert len(saved.getvalue()) < 0.6 * len(whole.getvalue())
    shown, meant = (np.asarray(Image.open(png).convert("RGB"), float) for png in (saved, whole))
    assert np.abs(shown - meant).mean() < 8  # of 255; of noise of all colours, which no figure shows


def test_figures_are_a_column_wide_with_readable_text(tmp_path):
    figure = drawn()
    Destination(tmp_path).save_figure(figure, "figure", SOURCE)
    width, height = plt.imread(tmp_path / "figures" / "figure.png").shape[1::-1]
    assert (width, height) == (round(300 * COLUMN_WIDTH_IN), 600)  # at 300 dots an inch, nothing cut off or added
    sizes = [text.get_fontsize() for axes in figure.axes for text in axes.get_xticklabels() + axes.legend_.get_texts()]
    assert min(sizes) >= 6  # points
    assert figure.axes[0].lines[0].get_color() == PALETTE[0]


def test_families_of_methods():
    names = ("flowcache_slow", "teacache_fast", "vanilla_kv", "every_k", "slow_mine")
    assert [family(name) for name in names] == ["flowcache", "teacache", "vanilla_kv", "every_k", "slow_mine"]


def test_every_method_looks_different_and_the_first_ones_as_they_always_did():
    methods = known_methods()
    looks = {(look(name)["color"], look(name)["marker"], look(name)["fillstyle"]) for name in methods}
    assert len(looks) == len(methods)
    assert len({colour_and_marker(name) for name in methods}) == len({family(name) for name in methods})
    first = {
        "vanilla": ("#000000", "D"),
        "vanilla_causal": ("#56B4E9", "v"),
        "vanilla_kv": ("#CC79A7", "P"),
        "flowcache_fast": ("#0072B2", "o"),
        "teacache_slow": ("#E69F00", "s"),
        "every_k": ("#009E73", "^"),
    }
    assert {name: colour_and_marker(name) for name in first} == first


def test_added_methods_leave_the_looks_of_the_first_as_they_were(monkeypatch):
    known = known_methods()
    first = {*baselines(), *(name for name in known if family(name) in map(family, listed_methods(style.CURVE)))}
    before = {name: colour_and_marker(name) for name in first}
    added = [f"added_{place}_fast" for place in range(FAMILIES - len({*map(family, known)} - {*baselines()}))]
    monkeypatch.setattr(style, "known_methods", lambda: sorted([*known, *added]))
    assert {name: colour_and_marker(name) for name in first} == before
    assert len({colour_and_marker(name) for name in [*known, *added]}) == FAMILIES + len(baselines())
    assert colour_and_marker("unknown") == style.UNKNOWN_LOOK
