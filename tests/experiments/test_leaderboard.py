"""The leaderboard: made from committed tables alone, today's page committed, nothing invented, nothing unescaped."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.video_io import write_lossless, write_mp4
from experiments.job.errors import BadInput
from experiments.job.paths import ROOT
from experiments.records import RecordStore
from experiments.show import leaderboard, leaderboard_videos, papers, published, results
from experiments.show.leaderboard import COMMAND, FAMILIES, make_page
from experiments.show.leaderboard_curves import curves_of, paired_of
from experiments.show.leaderboard_rows import COLUMNS, groups_of, reported_rows
from experiments.show.leaderboard_videos import take_videos
from experiments.show.methods import known_methods
from experiments.show.published import read_published
from experiments.show.results import TABLES
from experiments.show.traits import SECTIONS, as_named_here, traits_of
from tests.experiments.made_records import job_of, made
from tests.test_docs import anchors, text_of

FOLDER = ROOT / "results" / "leaderboard"


@pytest.fixture(scope="module")
def page() -> str:
    return make_page(FOLDER)


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """An empty stand-in for results/tables."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for module in (published, leaderboard):
        monkeypatch.setattr(module, "TABLES", folder)
    return folder


def take(folder: Path, *stems: str) -> None:
    for path in (path for stem in stems for path in TABLES.glob(f"{stem}*")):
        shutil.copyfile(path, folder / path.name)


def test_the_committed_page_is_that_of_todays_tables(page):
    committed = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert committed == page, f"the tables are others than the page's; make it again with {COMMAND}"


def test_the_page_asks_nothing_of_a_network_and_is_small(page):
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//|@import|fetch\(|XMLHttpRequest|import\(', page)
    assert re.findall(r"https?://[^\s\"]+", page) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert len(page.encode()) < 3 * 2**20
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10 * 2**20


def test_every_link_leads_to_a_file_or_a_section_that_is_there(page):
    links = set(re.findall(r'(?:href|src)="([^"]*)"', page)) - {"data:,"}
    assert len(links) > 20
    wrong = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = FOLDER / path if path else None
        if target is None:
            wrong += [] if f'id="{anchor}"' in page else [link]
        elif not target.is_file() or (anchor and anchor not in anchors(text_of(target))):
            wrong.append(link)
    assert wrong == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def settings_of(page: str) -> list[tuple[str, str, list[list[str]]]]:
    """Of the table of all settings, by body: family, measured or reported, and its rows' full values."""
    table = re.search(r'<table class="sortable" id="settings".*?</table>', page, re.DOTALL).group()
    bodies = re.findall(r'<tbody class="rows" data-family="(\w+)" data-rows="(\w+)">(.*?)</tbody>', table, re.DOTALL)
    rows = [re.findall(r"<tr .*?</tr>", body, re.DOTALL) for _, _, body in bodies]
    values = [[re.findall(r'data-value="(.*?)"', row) for row in each] for each in rows]
    for (_, kind, _), each in zip(bodies, rows, strict=True):
        assert all(('<span class="tag reported">' in row) == (kind == "reported") for row in each)
    return [(family, kind, each) for (family, kind, _), each in zip(bodies, values, strict=True)]


def test_every_column_sorts_and_every_row_has_all_of_them(page):
    for table in re.findall(r'<table class="sortable.*?</table>', page, re.DOTALL):
        head, *bodies = re.split("</thead>", table)
        headings = re.findall(r'<th scope="col"[^>]*><button type="button">', head)
        assert len(headings) == head.count("<th ")
        rows = [row for row in re.findall(r"<tr.*?</tr>", "".join(bodies), re.DOTALL) if "rowgroup" not in row]
        assert {len(re.findall("data-value=", row)) for row in rows} == {len(headings)}


def test_measured_figures_are_the_tables_own_and_reported_ones_stand_apart(page):
    groups = settings_of(page)
    place = {column.key: 1 + i for i, column in enumerate(COLUMNS)}
    for model in FAMILIES:
        measured = [row for family, kind, rows in groups if (family, kind) == (model, "measured") for row in rows]
        main = pd.read_csv(TABLES / f"{model}_embedded_main.csv")
        if "identical_videos" in main:
            main.loc[main["psnr"].isna() & main["identical_videos"].notna(), "psnr"] = float("inf")
        for _, own in main.iterrows():
            (row,) = (row for row in measured if row[0] == own["method"] and row[-1] == "main")
            for key in ("compute_left", "psnr", "ssim", "lpips", "caption_right", "n"):
                assert row[place[key]] == (
                    "" if pd.isna(own[key]) else repr(float(own[key])).replace("inf", "Infinity")
                )
        reported = [row for family, kind, rows in groups if (family, kind) == (model, "reported") for row in rows]
        assert len(reported) == len(reported_rows(model))
    magi = [row for family, kind, rows in groups if (family, kind) == ("magi", "reported") for row in rows]
    (fast, *_) = (row for row in magi if row[0] == "flowcache_fast")
    assert [fast[place[key]] for key in ("compute_left", "speedup", "psnr", "lpips")] == [
        "0.458",
        "2.38",
        "19.27",
        "0.4311",
    ]


def test_what_is_identical_is_ahead_of_every_psnr(tables):
    (tables / "wan_embedded_main.csv").write_text(
        "method,n,psnr,psnr_ci95,psnr_n,identical_videos\nevery_k,8,,,,8\nscope,8,40,2,5,3\nvanilla,8,,,,\n",
        encoding="utf-8",
    )
    (group, _) = groups_of("wan", "wan_embedded", "W")
    cells = [row["cells"][[column.key for column in COLUMNS].index("psnr")] for row in group["rows"]]
    assert [(cell["value"], cell["text"], cell["spread"]) for cell in cells] == [
        ("Infinity", "identical", ""),
        ("40.0", "40.00", "± 2.00 (n 5); 3 identical"),
        (None, "-", ""),
    ]


def test_rows_that_are_compared_with_other_videos_sort_apart(tables):
    for name, baseline, columns in (("main", "vanilla", "method"), ("field", "vanilla_kv", "family,told")):
        row = "flowcache" + "," * columns.count(",")
        (tables / f"skyreels_embedded_{name}.csv").write_text(f"{columns},n\n{row},8\n", encoding="utf-8")
        caption = (
            f"Measured here (m, e; a CPU(R) of 2; load average before timing 5.1, above the machine's cores for 8 "
            f"of 8 times, which are too long; code ab, cd). PSNR against {baseline}'s video of the same prompt"
        )
        (tables / f"skyreels_embedded_{name}.md").write_text(caption, encoding="utf-8")
    groups = groups_of("skyreels", "skyreels_embedded", "S")
    titles = [group["title"] for group in groups]
    (row,) = groups[0]["rows"]
    assert (row["machine"], row["codes"]) == ("a CPU(R) of 2", ("ab", "cd"))
    assert row["busy"]
    assert titles == [
        "S, measured here against vanilla",
        "S, measured here against vanilla_kv",
        "S, reported by papers",
    ]


def test_points_of_curves_have_the_psnr_that_main_tables_have(tables):
    take(tables, "magi_embedded_field")
    (group, _) = groups_of("magi", "magi_embedded", "M")
    own = pd.read_csv(TABLES / "magi_embedded_field.csv")
    shown = [row["cells"][[column.key for column in COLUMNS].index("psnr")]["value"] for row in group["rows"]]
    assert shown == [repr(float(value)) for value in own["psnr_uncapped"]]


def test_curves_are_the_tables_points_within_what_is_possible():
    curve, latents, *_ = curves_of("magi_embedded")
    assert latents["title"] == "latents' signal to noise, to vanilla's, dB"
    own = pd.read_csv(TABLES / f"magi_embedded_{curve['experiment']}.csv")
    points = [(line["method"], p["compute_left"], p["value"]) for line in curve["lines"] for p in line["points"]]
    told = own[["family", "compute_left", "psnr"]].itertuples(index=False, name=None)
    assert sorted(points) == sorted(told)
    ends = [end for line in curve["lines"] for point in line["points"] for end in point["interval"]]
    assert min(ends) >= 0
    assert max(ends) == 60


def test_differences_are_those_at_a_quarter_a_third_and_a_half_or_all_that_there_are():
    field, *_ = paired_of("magi_embedded")
    assert field["headings"] == [f"{one} ahead at {s}" for one in ("flowcast", "flowcache") for s in (0.25, 0.35, 0.5)]
    own = pd.read_csv(TABLES / "magi_embedded_field_paired.csv").set_index(["compared", "against", "compute_left"])
    (row,) = (row for row in field["rows"] if row["method"] == "magcache")
    assert float(row["cells"][1]["value"]) == own.loc[("flowcast", "magcache", 0.35), "difference_db"]
    for cell, share in zip(row["cells"], (0.25, 0.35, 0.5), strict=False):
        low, high = own.loc[("flowcast", "magcache", share), ["low", "high"]]
        assert cell["sure"] == (low > 0 or high < 0)
    shares = sorted(pd.read_csv(TABLES / "wan_embedded_field_paired.csv")["compute_left"].unique())
    assert not set(shares) & {0.25, 0.35, 0.5}  # of a few steps' compute there is no such share
    wan, *_ = paired_of("wan_embedded")
    assert wan["headings"][: len(shares)] == [f"flowcast ahead at {share:g}" for share in shares]


def test_what_is_not_measured_yet_is_said(tables):
    take(tables, "magi_embedded_main", "skyreels_embedded_placement")
    (tables / "magi_embedded_main.md").unlink()  # and a table whose caption is gone is shown all the same
    page = make_page(FOLDER)
    articles = dict(re.findall(r'<article data-family="(\w+)"(.*?)</article>', page, re.DOTALL))
    assert list(articles) == list(FAMILIES)
    assert all("are not measured yet at equal compute on this" in article for article in articles.values())
    assert "Paired differences at equal compute are not measured yet" in articles["magi"]
    assert "flowcast ahead at 0.35" in articles["skyreels"]
    assert "Below is what is." not in articles["wan"]
    assert "code not told" not in page  # nor is a machine, which it would stand beside
    assert read_published("magi_embedded_main").source.machine is None


def test_what_tables_say_is_escaped(tables, tmp_path, monkeypatch):
    evil = "</script><img src=x onerror=alert(1)>"
    take(tables, "magi_embedded_field", "magi_embedded_main")
    for name, column in (("field", "family"), ("field", "told"), ("main", "method"), ("field_paired", "against")):
        path = tables / f"magi_embedded_{name}.csv"
        data = pd.read_csv(path)
        data.loc[0, column] = evil
        data.to_csv(path, index=False)
    reported = tmp_path / "papers"
    shutil.copytree(papers.PAPERS, reported)
    path = reported / "scope.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("SCOPE", evil, 1), encoding="utf-8")
    for module in (papers, leaderboard.groups_of.__globals__):
        if isinstance(module, dict):
            monkeypatch.setitem(module, "PAPERS", reported)
        else:
            monkeypatch.setattr(module, "PAPERS", reported)
    page = make_page(FOLDER)
    assert evil in unescape(page)
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    lines = data["families"]["magi"]["curves"][0]["lines"]
    assert evil in [line["method"] for line in lines]
    for script in leaderboard.TEMPLATE.glob("*.js"):
        assert "innerHTML" not in script.read_text(encoding="utf-8")  # what the script writes is text alone


@pytest.mark.parametrize(
    ("name", "kind", "calibrated", "group"),
    [
        ("vanilla_kv", "baseline", False, "method"),
        ("flowcache", "reuse", False, "method"),
        ("flowcache + corrected", "forecast", False, "method"),
        ("flowcast_slow", "forecast", True, "method"),
        ("flowcast, plain rule", "forecast", False, "method"),
        ("magcache", "reuse", True, "method"),
        ("vanilla_kv + snapkv", "KV", False, "kv"),
        ("vanilla_kv + forcing_kv", "KV", True, "kv"),
        ("vanilla_kv + int4", "KV", False, "kv/store"),
        (as_named_here("QuaRot, 2 bits"), "KV", False, "kv/store"),
    ],
)
def test_a_method_is_known_by_its_name(name, kind, calibrated, group):
    traits = traits_of(name)
    assert (traits.kind, traits.calibrated, traits.section) == (kind, calibrated, SECTIONS[group])


def test_names_of_papers_alone_have_no_kind():
    assert traits_of("PAB") is traits_of(as_named_here("TempCache-Quant")) is traits_of("vanilla_kv + none") is None


def test_the_guide_has_every_method_in_the_section_that_is_linked():
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text_of(ROOT / "docs" / "methods.md"), re.M | re.S))
    by_anchor = {title.lower().replace(" ", "-"): text for title, text in sections.items()}
    for name in known_methods():
        told = re.sub(r"`(\w+)_slow`, `_fast`", r"`\1_slow`, `\1_fast`", by_anchor[traits_of(name).section])
        assert f"`{name}`" in told


def test_it_goes_below_output_dir_unless_it_is_published(tables, tmp_path, monkeypatch, capsys):
    take(tables, "wan_embedded_main")
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "results")
    assert leaderboard.main([f"output_dir={tmp_path / 'outputs'}"]) == 0
    assert not (tmp_path / "results").exists()
    assert str(tmp_path / "outputs" / "leaderboard" / "index.html") in capsys.readouterr().out
    assert leaderboard.main(["publish=true"]) == 0
    written = [path.relative_to(tmp_path / "results") for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert written == [Path("leaderboard/index.html")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["video=outputs"], "video=outputs is no option=value of this command; did you mean videos?"),
        (["videos=outputs"], "videos=outputs must be true or false; they are of the records of output_dir"),
        (["output_dir="], "output_dir= is no option=value"),
        (["model=magi"], "there are output_dir, publish, videos"),
        (["output_dir=OUT"], "has no magi_embedded_main.csv or other main table; make it with experiments.tables"),
    ],
)
def test_bad_input_is_one_line(arguments, says, tables, tmp_path, capsys):
    assert leaderboard.main([each.replace("OUT", str(tmp_path)) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def make_videos(output_dir: Path) -> None:
    """Records of two methods with previews of noise that no model made."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    for method, share, metrics in (("vanilla", 1.0, {}), ("flowcache_fast", 0.7, {"psnr": 40.0})):
        job = job_of(output_dir, f"method={method}", 'prompts=["a <b>"]')
        record, store = made(job, "a <b>", share, metrics=metrics), RecordStore(output_dir)
        write_lossless(store.video_path(record.key), frames, job.fps)
        write_mp4(store.preview_path(record.key), frames, job.fps)


def test_videos_of_finished_records_are_taken_along(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaderboard, "FAMILIES", {"magi": FAMILIES["magi"]})
    take(tables, "magi_embedded_main")
    make_videos(tmp_path)
    made(job_of(tmp_path, "method=every_k", 'prompts=["a <b>"]'), "a <b>", 0.5, metrics={"psnr": 39.0})
    folder = tmp_path / "leaderboard"
    assert leaderboard.main([f"output_dir={tmp_path}", "videos=true"]) == 0
    assert "left out, magi, every_k: no preview file" in capsys.readouterr().out
    page = (folder / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<video src="(.*?)"', page)
    assert shown == [f"videos/magi_{method}.mp4" for method in ("vanilla", "flowcache_fast")]
    assert all((folder / place).stat().st_size > 0 for place in shown)
    assert "“a &lt;b&gt;”" in page
    assert make_page(folder) == page  # from what lies beside it
    monkeypatch.setattr(leaderboard_videos, "MOST_BYTES_OF_ALL", 10)
    with pytest.raises(BadInput, match=r"2 videos of .* take .* MiB, and the page may have"):
        take_videos(["magi"], tmp_path, folder)
    monkeypatch.setattr(leaderboard_videos, "MOST_BYTES", 10)
    with pytest.raises(BadInput, match=r"no finished video to show; magi, .*: its video takes more than"):
        take_videos(["magi"], tmp_path, folder)
    assert all((folder / place).is_file() for place in shown)  # the older ones stay


def test_the_clip_is_one_that_most_methods_have(tables, tmp_path):
    """Rich clips and a second seed are of some methods alone, and come before others in the alphabet."""
    make_videos(tmp_path)
    caption = {"right": True, "motion": "moving up"}
    made(job_of(tmp_path, "method=vanilla", 'prompts=["a <a>"]'), "a <a>", caption=caption)
    take_videos(["magi"], tmp_path, tmp_path / "page")
    index = json.loads((tmp_path / "page" / "videos" / "index.json").read_text(encoding="utf-8"))
    assert index["magi"]["prompt"] == "a <b>"
