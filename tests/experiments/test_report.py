"""The HTML report of a tiny set of records: what it says, what it refuses, and how it behaves in Chromium."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import unescape
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from experiments.job.cli import compose_config
from experiments.job.job import Job, make_job
from experiments.records import RecordStore
from experiments.records.collect import collect, read_trace
from experiments.run.runner import Runner
from experiments.show import report
from experiments.show.report import reuse_map
from experiments.show.reported import read_reported
from experiments.show.results import provenance
from experiments.show.style import FAMILY_COLOURS
from experiments.show.tables import MEASURED, describe, main_table
from experiments.show.tables import METHODS as ALL_METHODS
from tests.experiments.made_records import job_of, made, trace

# 32 steps: with fewer, FlowCache's default threshold never reuses.
SMALL = ["setting.num_frames=48", "setting.num_steps=32", "num_prompts=2", "metrics=[psnr,ssim]", "latency_pairs=1"]
METHODS = ("vanilla", "flowcache_fast")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """With finished records of vanilla and a method that reuses."""
    common = [*SMALL, "workers=1", "threads=1", f"output_dir={tmp_path_factory.mktemp('outputs')}"]
    for method in METHODS:
        made = make_job(compose_config([*common, f"method={method}"]))
        Runner(made).run()
    return make_job(compose_config(common))


@pytest.fixture(scope="module")
def folder(job: Job) -> Path:
    """Made by the command, at its default place."""
    assert report.main([*SMALL, f"output_dir={job.output_dir}"]) == 0
    return job.output_dir / "report" / "magi_embedded"


@pytest.fixture(scope="module")
def measured(job: Job) -> pd.DataFrame:
    return main_table(collect(job), job)


def table_of(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """By method, heading -> full value, as the page holds them."""
    table = re.search(
        rf'<table id="{name}".*?</table>', (folder / "index.html").read_text(encoding="utf-8"), re.S
    ).group()
    headings = re.findall(r'<button type="button">(.*?)</button>', table)
    rows = [re.findall(r'data-value="(.*?)"', row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def data_of(folder: Path) -> dict:
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))


def test_the_folder_is_self_contained(folder):
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|fetch\(", page)
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    videos = {take["video"] for clip in data_of(folder)["clips"] for take in clip["takes"].values()}
    assert len(videos) == 2 * len(METHODS)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {"index.html", *videos}


def test_measured_values_are_those_of_the_main_table(folder, job, measured):
    shown = table_of(folder, "measured")
    assert list(shown) == list(measured.index) == list(METHODS)
    for column in MEASURED:
        values = measured[column.key] if column.key in measured else pd.Series(dtype=float)
        for method in measured.index if values.notna().any() else ():
            text = shown[method][column.heading]
            assert (text == "") == pd.isna(values[method])
            assert text == "" or float(text) == values[method]  # every digit, not only those shown
    assert all(row["source"] == "measured" for row in shown.values())
    assert "LPIPS" not in shown["vanilla"]  # not measured here: no empty column
    assert provenance(collect(job)) in (folder / "index.html").read_text(encoding="utf-8")


def test_reported_values_stand_apart_and_say_so(folder):
    shown, (reported, source) = table_of(folder, "reported"), read_reported("magi")
    assert {name: float(row["PFLOPs"]) for name, row in shown.items()} == dict(reported["pflops"])
    assert shown["vanilla"]["SSIM"] == ""
    assert float(shown["teacache_slow"]["compute left"]) == 294 / 306
    assert all(row["source"] == "reported" for row in shown.values())
    assert source in (folder / "index.html").read_text(encoding="utf-8")


def test_the_plot_has_means_and_interval_ends_of_the_main_table(folder, measured):
    by_key = {q["key"]: q for q in data_of(folder)["plot"]["qualities"]}
    assert set(by_key) == {"psnr", "ssim"}
    for point in by_key["ssim"]["points"]:
        row = measured.loc[point["method"]]
        assert (point["value"], point["compute_left"]) == (row["ssim"], row["compute_left"])
        ends = (row["ssim"] - row["ssim_ci95"], min(1, row["ssim"] + row["ssim_ci95"]))
        assert (point["low"], point["high"]) == (ends if pd.notna(row["ssim_ci95"]) else (None, None))


def test_a_psnr_says_over_how_many_videos_it_is():
    row = {"method": "every_k", "n": 8, "compute_left": 0.5, "psnr": 40.0, "psnr_ci95": 2.0, "identical_videos": 3.0}
    row |= {"ssim": 0.9, "caption_right": 0.75, "caption_right_low": 0.4, "caption_right_high": 0.9}
    psnr, ssim, captions = report.quality_points(pd.DataFrame([row]).set_index("method"))["qualities"]
    assert [quality["points"][0]["n"] for quality in (psnr, ssim, captions)] == [5, 8, 8]
    ends = [(quality["points"][0]["low"], quality["points"][0]["high"]) for quality in (psnr, ssim, captions)]
    assert ends == [(38, 42), (None, None), (0.4, 0.9)]
    row |= {"psnr_ci95": float("nan"), "ssim": 0.99, "ssim_ci95": 0.03}
    psnr, ssim, _ = report.quality_points(pd.DataFrame([row]).set_index("method"))["qualities"]
    assert psnr["points"][0]["low"] is psnr["points"][0]["high"] is None
    assert (ssim["points"][0]["low"], ssim["points"][0]["high"]) == (pytest.approx(0.96), 1)  # as far as it goes


def test_deviations_and_what_is_not_there_are_said_below_the_table(folder, job, measured):
    ours, *_ = describe(measured, pd.DataFrame(), job, "here")
    shown = re.search(
        r'<ul class="note" id="notes">(.*?)</ul>', (folder / "index.html").read_text(encoding="utf-8"), re.S
    ).group(1)
    notes = [unescape(note) for note in re.findall("<li>(.*?)</li>", shown)]
    assert notes == list(ours.notes)
    assert any(note.startswith("Deviates, a: ") for note in notes)
    assert any(note.startswith("VBench % n/a: ") for note in notes)
    letters = {name: row["deviates"] for name, row in table_of(folder, "measured").items()}
    assert letters == {"vanilla": "", "flowcache_fast": "a"}


def test_reuse_maps_say_what_the_traces_say(folder, job):
    store = RecordStore(job.output_dir)
    for clip in data_of(folder)["clips"]:
        for name, take in clip["takes"].items():
            trace = pd.read_parquet(store.trace_path(Path(take["video"]).stem))
            cells = {(t.row, t.chunk): t.action[0] for t in trace.itertuples()}
            shown = {
                (chunk["first"] + offset, index): letter
                for index, chunk in enumerate(take["map"])
                for offset, letter in enumerate(chunk["letters"])
            }
            assert shown == cells
            assert ("r" in cells.values()) == (take["computed"] < 1) == (name != "vanilla")


def test_a_rerun_gives_the_same_bytes_and_leaves_nothing_behind(folder, job):
    def contents() -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents()
    (folder / "videos" / "stale.mp4").write_bytes(b"of an older report")
    assert report.build(job, folder) == folder / "index.html"
    assert contents() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failure_leaves_the_older_report_whole(folder, job, monkeypatch):
    before = (folder / "index.html").read_bytes()

    def full_disk(*paths):
        raise OSError("no space left on device")

    monkeypatch.setattr(report.shutil, "copyfile", full_disk)
    with pytest.raises(OSError, match="no space left"):
        report.build(job, folder)
    assert (folder / "index.html").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_clips_limits_the_videos_that_are_copied(job, tmp_path):
    folder = tmp_path / "one"
    assert report.main([*SMALL, f"output_dir={job.output_dir}", f"destination={folder}", "clips=1"]) == 0
    assert len(list((folder / "videos").iterdir())) == len(METHODS)
    assert "Videos of 1 of 2 prompts" in (folder / "index.html").read_text(encoding="utf-8")
    assert [row["n"] for row in table_of(folder, "measured").values()] == ["2.0"] * len(METHODS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["output_dir=OUT"], "make them first, for example python run.py"),
        (["output_dir=OUT", "clips=0"], "clips=0 must be a whole number of at least 1"),
        (["output_dir=OUT", "destination=OUT"], "is no report, so it is left alone"),
        (["model=magy"], "did you mean magi"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("do not delete", encoding="utf-8")
    assert report.main([a.replace("OUT", str(tmp_path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "do not delete"


@pytest.mark.parametrize("damage", ["cut", "no parquet", "other numbers"])
def test_a_damaged_trace_is_one_line_that_names_it(damage, tmp_path, capsys):
    job = job_of(tmp_path, "method=vanilla")
    record, store = made(job, "a"), RecordStore(tmp_path)
    path = store.trace_path(record.key)
    trace().to_parquet(path)
    store.save(record)
    assert reuse_map(read_trace(store, record)) == reuse_map(trace())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no parquet":
        path.write_text("row,chunk", encoding="utf-8")
    else:
        trace(num_steps=5).to_parquet(path)
    assert report.main([f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"{path} is missing or damaged; remove the run with python -m experiments.records prune --yes" in error
    assert error.count("\n") == 1


def opened(browser, folder: Path):
    """A report in headless Chromium, off the disk; every request is written down."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(180_000)
    page.requested, page.problems = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto((folder / "index.html").as_uri())
    return page


@pytest.fixture(scope="module")
def page(browser, folder):  # in this order: without a browser nothing is generated for it
    return opened(browser, folder)


@pytest.fixture(scope="module")
def page_of_all(browser, tmp_path_factory):
    """Of records of every method, one of them of an identical video, that no model was run for."""
    output_dir = tmp_path_factory.mktemp("all")
    made(job_of(output_dir, "method=vanilla"), "a")
    for place, name in enumerate(ALL_METHODS[1:]):
        metrics = {"psnr": "inf" if place == 0 else 40.0 - place, "ssim": 1 - 0.01 * place}
        made(job_of(output_dir, f"method={name}"), "a", 0.9 - 0.1 * place, metrics=metrics)
    report.build(job_of(output_dir), output_dir / "page")
    return opened(browser, output_dir / "page")


def test_an_identical_video_says_so_beside_its_other_facts_in_chromium(page_of_all):
    facts = page_of_all.eval_on_selector_all(
        "#takes figure", "all => all.map(f => [...f.querySelectorAll('p span')].map(s => s.textContent))"
    )
    assert facts[:3] == [
        ["the reference", "100 % of the compute"],
        ["90 % of the compute", "identical to vanilla", "SSIM 1.0000"],
        ["80 % of the compute", "PSNR 39.00 dB", "SSIM 0.9900"],
    ]


def test_every_method_has_a_mark_of_its_own_in_chromium(page_of_all):
    marks = page_of_all.eval_on_selector_all(
        "#measured span.method path", "all => all.map(p => ['d', 'fill', 'stroke'].map(a => p.getAttribute(a)).join())"
    )
    assert len(set(marks)) == len(marks) == len(ALL_METHODS)
    assert page_of_all.problems == []


def test_the_page_is_not_blank_in_chromium(page):
    page.locator("#plot").scroll_into_view_if_needed()
    shown = Image.open(BytesIO(page.locator("#pareto svg").screenshot())).convert("RGB")
    colours = Counter({colour: n for n, colour in shown.getcolors(shown.width * shown.height)})
    assert len(colours) > 20  # edges are smoothed
    assert colours.most_common(1)[0][1] < 0.98 * shown.width * shown.height
    blue = tuple(int(FAMILY_COLOURS["flowcache"][i : i + 2], 16) for i in (1, 3, 5))
    assert colours[blue] > 50  # FlowCache's mark, in the figures' colour


def test_headings_sort_in_chromium(page, measured):
    def methods() -> list[str]:
        return page.eval_on_selector_all("#measured tbody th", "cells => cells.map(cell => cell.dataset.value)")

    rising = list(measured.sort_values("compute_left").index)
    heading = page.locator("#measured thead th", has_text="compute left")
    for order, direction in ((rising, "ascending"), (rising[::-1], "descending")):
        heading.locator("button").click()
        assert methods() == order
        assert heading.get_attribute("aria-sort") == direction
    page.locator("#measured thead button", has_text="SSIM").click()
    assert methods()[-1] == "vanilla"  # which has none, and stays last either way
    page.locator("#measured thead button", has_text="SSIM").click()
    assert methods()[-1] == "vanilla"
    assert heading.get_attribute("aria-sort") is None


def test_all_videos_follow_the_slider_in_chromium(page, job):
    if not page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
        pytest.skip("this Chromium plays no H.264; install a build that does (Debian: apt-get install chromium)")
    settled = "[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.seeking && v.paused)"

    def times() -> list[float]:
        page.wait_for_function(settled)
        return page.eval_on_selector_all("video", "videos => videos.map(v => v.currentTime)")

    for frame in (31, 5):
        page.locator("#frame").fill(str(frame))
        assert times() == pytest.approx([(frame + 0.5) / job.fps] * len(METHODS), abs=1e-3)
    assert page.evaluate("document.getElementById('canvas').width") == 14 * 64  # drawn on, enlarged in whole steps
    page.locator("#canvas").click(position={"x": 4, "y": 4})
    assert float(page.locator("#wipe").input_value()) < 5
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('frame').value > 8")
    page.locator("#play").click()
    shown = int(page.locator("#frame").input_value())
    assert times() == pytest.approx([(shown + 0.5) / job.fps] * len(METHODS), abs=1e-3)
    page.locator("#clip").select_option("1")
    assert times() == pytest.approx([(shown + 0.5) / job.fps] * len(METHODS), abs=1e-3)


def test_nothing_is_fetched_and_nothing_fails_in_chromium(page):
    assert page.requested
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
