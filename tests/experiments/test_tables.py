"""The main table, its paired differences, deviations and VBench's totals, from records that no model was run for."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from eval.statistics import median_and_interval, paired_difference
from eval.vbench.suite import NAMES, SUITE
from experiments import results, tables
from experiments.collect import at_defaults, collect
from experiments.errors import BadInput
from experiments.job import Job
from experiments.reported import method_deviation, read_reported, setting_deviation
from experiments.tables import describe, main_table, marks, paired_table
from experiments.vbench_totals import HOW, read_total
from tests.experiments.made_records import job_of, made

PROMPTS = ("a", "b", "c", "d")
SLOW = [40.0, 42.0, 44.0, 46.0]
FAST = [37.0, 40.0, 39.0, 44.0]


@pytest.fixture
def job(tmp_path) -> Job:
    """With records of vanilla and of a slow and a fast method, two prompts timed; the last fast video is identical."""
    jobs = {name: job_of(tmp_path, f"method={name}") for name in ("vanilla", "flowcache_slow", "flowcache_fast")}
    for place, prompt in enumerate(PROMPTS):
        caption = {"right": True, "colour_right": True, "shape_right": True, "motion_right": True}
        made(jobs["vanilla"], prompt, latency_s=10.0, caption=caption)
        timed = {"baseline_latency_s": 10.0 + place} if place < 2 else {}
        metrics = {"psnr": SLOW[place], "ssim": 0.9, "lpips": 0.1}
        made(jobs["flowcache_slow"], prompt, 0.8, latency_s=8.0, metrics=metrics, caption=caption, **timed)
        metrics = {"psnr": "inf" if place == 3 else FAST[place], "ssim": 0.8 + 0.01 * place, "lpips": None}
        wrong = {**caption, "right": place != 1}
        made(jobs["flowcache_fast"], prompt, 0.5, latency_s=5.0, metrics=metrics, caption=wrong, **timed)
    other = job_of(tmp_path, "method=flowcache_fast", "method.threshold=0.5")
    made(other, "a", 0.1, latency_s=1.0, metrics={"psnr": 1.0, "ssim": 0.1})  # no default: in no table
    return job_of(tmp_path)


@pytest.fixture
def measured(job) -> pd.DataFrame:
    return main_table(collect(job), job)


def test_every_figure_has_its_interval_and_count(job, measured):
    assert list(measured.index) == ["vanilla", "flowcache_slow", "flowcache_fast"]
    fast = measured.loc["flowcache_fast"]
    assert (fast["n"], fast["threshold"], fast["identical_videos"]) == (4, 0.015, 1)
    assert (fast["compute_left"], fast["compute_left_ci95"], fast["pflops_ci95"]) == (0.5, 0, 0)
    assert fast["psnr"] == pytest.approx(np.mean(FAST[:3]))  # without the identical one
    assert (fast["speedup"], fast["speedup_low"], fast["speedup_high"]) == median_and_interval([2.0, 2.2])
    assert (fast["speedup_pairs"], fast["latency_n"]) == (2, 2)
    assert fast["efficiency"] == pytest.approx(fast["speedup"] * 0.5)
    assert (fast["caption_right"], measured.loc["vanilla", "caption_right"]) == (0.75, 1)
    assert np.isnan(fast["lpips"])
    assert measured.loc["vanilla", ["psnr", "ssim", "speedup"]].isna().all()
    table, _, _ = describe(measured, paired_table(collect(job), job, list(measured.index)), job, "somewhere")
    bare = {"method", "n", "threshold", "VBench %", "identical", "deviates"}  # no measurements, or none made
    for row in table.cells():
        for column, (value, spread) in zip(table.shown, row, strict=True):
            assert column.heading in bare or value == "-" or spread, f"{column.heading}: {value} without an interval"


def test_differences_are_paired_by_prompt(job, measured):
    paired = paired_table(collect(job), job, list(measured.index)).set_index(["method", "against"])
    fast = paired.loc["flowcache_fast", "flowcache_slow"]
    differences = paired_difference(FAST[:3], SLOW[:3])  # not the prompt whose fast video has no PSNR
    assert tuple(fast[["psnr", "psnr_low", "psnr_high"]]) == pytest.approx(differences)
    assert (fast["psnr_n"], fast["compute_left_n"], fast["time_left_n"]) == (3, 4, 2)
    assert fast["compute_left"] == pytest.approx(-0.3)
    assert fast["time_left"] == pytest.approx((5 / 10 + 5 / 11) / 2 - (8 / 10 + 8 / 11) / 2)
    vanilla = paired.loc["flowcache_fast", "vanilla"]
    assert vanilla["caption_right"] == -0.25
    assert vanilla["time_left"] == pytest.approx((5 / 10 + 5 / 11) / 2 - 1)
    assert np.isnan(vanilla.get("psnr", np.nan))  # vanilla is what it compares with


def test_measured_and_reported_share_no_table(job, measured):
    paired = paired_table(collect(job), job, list(measured.index))
    ours, differences, papers = describe(measured, paired, job, "somewhere")
    assert "here (somewhere)" in ours.text
    assert set(papers.data["method"]) == set(read_reported("magi")[0].index)
    assert papers.suffix is None  # results/reported/ has it already
    assert list(differences.data["against"]) == ["vanilla", "vanilla", "flowcache_slow"]
    assert ours.data["pflops"].max() < 1 < papers.data["pflops"].min()


def test_deviations_are_marked(job, measured):
    ours, *_ = describe(measured, paired_table(collect(job), job, list(measured.index)), job, "somewhere")
    letters = dict(zip(ours.data["method"], ours.data["deviates"], strict=True))
    assert letters["flowcache_fast"] == letters["flowcache_slow"] == "a"
    assert pd.isna(letters["vanilla"])
    assert ours.notes[0].startswith("Deviates, all rows: a small trained model, not the official weights, ")
    assert "height 64 (reported: 720), num_frames 192 (reported: 240)" in ours.notes[0]
    assert "num_steps" not in ours.notes[0]  # 64, as reported
    assert "Deviates, a: last_step own (published: global), reuse the model's sound form" in ours.notes[1]


def test_what_the_published_code_does_deviates_in_nothing():
    published = {"last_step": "global", "reuse": "displacement", "refresh_clean_kv": False, "near_clean": False}
    options = {**published, "threshold": 0.015, "warmup_steps": 5, "distance": "embedded_latent"}
    assert method_deviation("magi", "flowcache_fast", options) is None
    told = method_deviation("magi", "flowcache_slow", options | {"refresh_clean_kv": True})
    assert told == "refresh_clean_kv True (published: False), threshold 0.015 (published: 0.01)"
    assert "the paper gives none" in method_deviation("magi", "teacache_slow", {"threshold": 0.02, "published": True})
    assert method_deviation("skyreels", "vanilla_kv", {}) == "no published row: this suite's own baseline"
    assert method_deviation("magi", "vanilla", {}) is None
    paper = {"num_frames": 240, "num_steps": 64, "height": 720, "width": 720, "device": "cuda"}
    paper |= {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
    assert setting_deviation("magi", {**paper, "setting": "paper", "model": "magi"}) is None
    told = setting_deviation("magi", {**paper, "setting": "paper", "shift": 1.0})
    assert told == "all rows: shift 1.0 (reported: its own)"


def test_marks_give_equal_deviations_one_letter():
    letters, notes = marks(pd.Series({"a": "x", "b": None, "c": "y", "d": "x"}))
    assert letters.dropna().to_dict() == {"a": "a", "c": "b", "d": "a"}
    assert notes == ["Deviates, a: x", "Deviates, b: y"]


def vbench_scores(job: Job, method: str, score: float, dimensions=NAMES, num_prompts: int = 3) -> None:
    """What experiments.vbench_full keeps: every video of a prompt scores ``score`` and a little more by prompt."""
    mine = at_defaults(collect(job), job, method)
    prompts = sorted(mine["prompt"])[:num_prompts]
    keys = dict(zip(mine["prompt"], mine["key"], strict=True))
    per_video = {f"{prompt}-0.mp4": score + 0.01 * place for place, prompt in enumerate(prompts)}
    result = {"mean": np.mean(list(per_video.values())), "per_video": per_video, "num_expected": len(prompts)}
    content = {
        "videos": {f"{prompt}-0.mp4": keys[prompt] for prompt in prompts},
        "dimensions": dict.fromkeys(dimensions, result),
        "not_run": {},
    }
    path = job.output_dir / "vbench" / f"{method}{len(dimensions)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def expected_total(raw: float) -> float:
    """Per cent, with every dimension at one raw score."""
    scaled = {d.name: (raw - d.lowest) / (d.highest - d.lowest) * d.weight for d in SUITE}
    groups = {g: [d for d in SUITE if d.group == g] for g in ("quality", "semantic")}
    quality, semantic = (sum(scaled[d.name] for d in g) / sum(d.weight for d in g) for g in groups.values())
    return 100 * (4 * quality + semantic) / 5


def test_vbench_totals_come_with_intervals_where_they_exist(job):
    vbench_scores(job, "flowcache_fast", 0.8)
    vbench_scores(job, "vanilla", 0.82)
    frame = collect(job)
    measured = main_table(frame, job)
    fast = measured.loc["flowcache_fast"]
    assert fast["vbench"] == pytest.approx(expected_total(0.81))
    assert expected_total(0.80) - 1e-9 < fast["vbench_low"] < fast["vbench"]
    assert fast["vbench"] < fast["vbench_high"] < expected_total(0.82) + 1e-9
    assert fast["vbench_n"] == 3
    paired = paired_table(frame, job, list(measured.index)).set_index(["method", "against"])
    difference = paired.loc["flowcache_fast", "vanilla"]
    assert difference["vbench"] == pytest.approx(expected_total(0.81) - expected_total(0.83))
    # Every prompt differs by as much, so that the pairs leave no doubt, however wide each interval is.
    assert difference["vbench_high"] - difference["vbench_low"] < 1e-9
    ours, *_ = describe(measured, paired.reset_index(), job, "somewhere")
    assert ours.notes[-1] == f"VBench n/a: no scores of these videos; {HOW} (flowcache_slow)"


def test_vbench_totals_over_different_prompts_are_not_subtracted(job):
    vbench_scores(job, "flowcache_fast", 0.8)
    vbench_scores(job, "vanilla", 0.82, num_prompts=4)
    frame = collect(job)
    paired = paired_table(frame, job, list(main_table(frame, job).index)).set_index(["method", "against"])
    assert np.isnan(paired.loc[("flowcache_fast", "vanilla"), "vbench"])


def test_a_partial_vbench_total_is_none_and_says_so(job):
    vbench_scores(job, "flowcache_fast", 0.8, dimensions=NAMES[:3])
    total = read_total(job.output_dir, at_defaults(collect(job), job, "flowcache_fast")["key"])
    assert (total.percent, total.reason) == (None, f"Total (partial: 3 of 16 dimensions); {HOW}")
    (job.output_dir / "vbench" / "damaged.json").write_text('{"videos"')
    vbench_scores(job, "flowcache_fast", 0.8, num_prompts=4)  # more videos: the better known
    assert read_total(job.output_dir, at_defaults(collect(job), job, "flowcache_fast")["key"]).num_videos == 4
    assert read_total(job.output_dir, ["other videos"]).reason == f"no scores of these videos; {HOW}"


def test_the_command_writes_three_forms_and_the_same_again(job, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(results, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert tables.main([f"output_dir={job.output_dir}"]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    stem = "magi_embedded_main"
    assert set(first) == {f"{stem}.md", f"{stem}.tex", f"{stem}.csv", f"{stem}_paired.csv"}
    assert tables.main([f"output_dir={job.output_dir}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == first
    assert tables.main(["model=skyreels", f"output_dir={job.output_dir}"]) == 2  # no records of it
    assert "make them first" in capsys.readouterr().err


def test_records_of_no_default_are_refused(tmp_path):
    job = job_of(tmp_path, "method=flowcache_fast", "method.threshold=0.5")
    made(job, "a", 0.5, metrics={"psnr": 30.0})
    with pytest.raises(BadInput, match=r"none of vanilla, .* at its default options"):
        main_table(collect(job), job)
