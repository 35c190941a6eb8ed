"""The HTML report of a tiny set of records: what it says, what it refuses, and how it behaves in Chromium."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.video_io import write_lossless
from experiments.job.cli import compose_config
from experiments.job.job import Job, make_job
from experiments.records import RecordStore
from experiments.records.collect import collect, read_trace
from experiments.run.runner import Runner
from experiments.show import report
from experiments.show.first_clip import at_border, first_shown, middle_of_longest
from experiments.show.report import reuse_map
from experiments.show.reported import read_reported
from experiments.show.results import provenance
from experiments.show.style import BASELINE_LOOKS, MARKERS, UNKNOWN_LOOK
from experiments.show.tables import describe, main_table, measured_columns
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
    assert "Shapes wrap" not in page  # said of shapes alone: here no caption was checked
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|fetch\(", page)
    assert re.findall(r'(?:src|href)="(?!#|data:)', page) == []
    videos = {take["video"] for clip in data_of(folder)["clips"] for take in clip["takes"].values()}
    assert len(videos) == 2 * len(METHODS)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {"index.html", *videos}


def test_measured_values_are_those_of_the_main_table(folder, job, measured):
    shown = table_of(folder, "measured")
    assert list(shown) == list(measured.index) == list(METHODS)
    for column in measured_columns(measured):
        values = measured[column.key] if column.key in measured else pd.Series(dtype=float)
        for method in measured.index if values.notna().any() else ():
            text = shown[method][column.heading]
            assert (text == "") == pd.isna(values[method])
            if isinstance(values[method], str):
                assert unescape(text) == values[method]
            else:
                assert text == "" or float(text) == values[method]  # every digit, not only those shown
    assert '<span class="tag measured">measured</span> here' in (folder / "index.html").read_text(encoding="utf-8")
    assert "LPIPS" not in shown["vanilla"]  # not measured here: no empty column
    assert provenance(collect(job)) in unescape((folder / "index.html").read_text(encoding="utf-8"))


def test_reported_values_stand_apart_and_say_so(folder):
    shown, (reported, source) = table_of(folder, "reported"), read_reported("magi")
    assert {name: float(row["PFLOPs"]) for name, row in shown.items()} == dict(reported["pflops"])
    assert shown["vanilla"]["SSIM"] == ""
    assert float(shown["teacache_slow"]["compute left"]) == 294 / 306
    assert '<span class="tag reported">reported</span> by the paper, of another model' in (
        folder / "index.html"
    ).read_text(encoding="utf-8")
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
    psnr, ssim, captions = report.quality_points(pd.DataFrame([row]).set_index("method"), "vanilla")["qualities"]
    assert [quality["points"][0]["n"] for quality in (psnr, ssim, captions)] == [5, 8, 8]
    ends = [(quality["points"][0]["low"], quality["points"][0]["high"]) for quality in (psnr, ssim, captions)]
    assert ends == [(38, 42), (None, None), (0.4, 0.9)]
    row |= {"psnr_ci95": float("nan"), "ssim": 0.99, "ssim_ci95": 0.03}
    psnr, ssim, _ = report.quality_points(pd.DataFrame([row]).set_index("method"), "vanilla")["qualities"]
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


def test_a_map_tells_forecasts_apart_on_a_page_that_knows_their_letter():
    letters = [chunk["letters"] for chunk in reuse_map(trace(reused=((0, 2),), forecast=((1, 2), (1, 3))))]
    assert letters == ["ccrc", "ccff"]
    script = (report.TEMPLATE / "maps.js").read_text(encoding="utf-8")
    known = re.search(r"CLASSES = {(.*?)}", script).group(1)
    assert set(re.findall(r"(\w): ", known)) == set(report._LETTERS.values())
    assert set(re.search(r"\(\[(\w+)\]\)", script).group(1)) == set(report._LETTERS.values())


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


def test_every_marker_of_the_figures_has_a_shape_on_the_page():
    shapes = re.search(
        r"const SHAPES = \{(.*?)\};", (report.TEMPLATE / "page.js").read_text(encoding="utf-8"), re.S
    ).group(1)
    known = {name.strip('"') for name in re.findall(r'^  ("?.+?"?): "M', shapes, re.M)}
    assert known >= {*MARKERS, UNKNOWN_LOOK[1], *(marker for _, marker in BASELINE_LOOKS)}


def square(*corners: tuple[int, int]) -> np.ndarray:
    """Frames of a bright square of 8 pixels with its corner at (row, column), which wraps, on a dark background."""
    frames = np.full((len(corners), 64, 64, 3), 10, np.uint8)
    for frame, (row, column) in zip(frames, corners, strict=True):
        frame[np.ix_(np.arange(row, row + 8) % 64, np.arange(column, column + 8) % 64)] = (200, 20, 20)
    return frames


def test_a_shape_at_the_border_is_seen():
    assert at_border(square((20, 20), (60, 20), (0, 30), (56, 30), (60, 60), (1, 1))).tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    assert middle_of_longest(np.array([1, 0, 1, 1, 1, 0, 1])) == 3
    assert middle_of_longest(np.zeros(3)) == 0


def test_the_first_clip_is_right_whole_and_in_motion(tmp_path):
    job, store = job_of(tmp_path, "method=vanilla"), RecordStore(tmp_path)
    clips = {  # by prompt, what was found of it and its frames
        "a": ({"right": False, "motion": "moving up"}, square(*[(20, 20)] * 4)),
        "b": ({"right": True, "motion": "moving up"}, square((60, 20), (20, 20), (20, 20), (60, 20))),
        "c": ({"right": True, "motion": "staying still"}, square(*[(20, 20)] * 4)),
        "d": ({"right": True, "motion": "bouncing"}, square((0, 20), (9, 9), (20, 20), (30, 20))),
    }
    records = []
    for prompt, (caption, frames) in clips.items():
        records.append(made(job, prompt, caption=caption))
        write_lossless(store.video_path(records[-1].key), frames, 24)
    assert first_shown(store, records) == (2, 2)  # whole all along, though still
    page = report.build(job, tmp_path / "page")
    assert data_of(page.parent)["first"] == {"clip": 2, "frame": 2}
    assert "Shapes wrap, by design" in page.read_text(encoding="utf-8")
    assert first_shown(store, records[:2]) == (1, 2)
    assert first_shown(store, [None, *records[:2]]) == (2, 2)
    store.video_path(records[2].key).unlink()
    assert first_shown(store, records) == (3, 2)  # cut in the fewest frames, of those that are there
    assert first_shown(store, records[:1]) == first_shown(store, []) == (0, 0)
