"""The main table, its paired differences, deviations and VBench's totals, from records that no model was run for."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from eval.statistics import median_and_interval, paired_difference
from eval.vbench.suite import NAMES, SUITE
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.records import identity
from experiments.records.collect import at_defaults, collect
from experiments.show import tables
from experiments.show.reported import method_deviation, read_reported, setting_deviation
from experiments.show.results import Table, latex, markdown, marks
from experiments.show.tables import describe, main_table, paired_table
from experiments.show.vbench_totals import HOW, read_total
from tests.experiments.made_records import job_of, made

PROMPTS = tuple("abcdefgh")
SLOW = [40.0, 42.0, 44.0, 46.0, 41.0, 43.0, 45.0, 47.0]
FAST = [37.0, 40.0, 39.0, 44.0, 38.0, 40.0, 41.0, 42.0]  # the last one's video is identical
TIMED = 6
NO_WEIGHTS = "there are no weights of it here"


@pytest.fixture
def job(tmp_path) -> Job:
    """With records of vanilla and of a slow and a fast method, six prompts timed; the last fast video is identical,
    LPIPS is missing from all fast and from two slow ones."""
    jobs = {name: job_of(tmp_path, f"method={name}") for name in ("vanilla", "flowcache_slow", "flowcache_fast")}
    for place, prompt in enumerate(PROMPTS):
        caption = dict.fromkeys(("right", "colour_right", "shape_right", "motion_right"), True)
        caption |= {"seam_ratio": 1 + place / 10, "position_jump_pixels": None if place == 7 else place}
        made(jobs["vanilla"], prompt, latency_s=10.0, caption=caption)
        timed = {"baseline_latency_s": 10.0 + place} if place < TIMED else {}
        metrics = {"psnr": SLOW[place], "ssim": 0.9, "lpips": 0.1 if place < 6 else None}
        said = {"notes": {"lpips": "its network did not load"}} if place >= 6 else {}
        made(jobs["flowcache_slow"], prompt, 0.8, latency_s=8.0, metrics=metrics, caption=caption, **said, **timed)
        metrics = {"psnr": "inf" if place == 7 else FAST[place], "ssim": 0.8 + 0.01 * place, "lpips": None}
        wrong = {**caption, "right": place != 1}
        said = {"notes": {"lpips": NO_WEIGHTS}}
        timed["chunk_latency_s"] = [1.0 + place, 5.0] if place else []
        made(jobs["flowcache_fast"], prompt, 0.5, latency_s=5.0, metrics=metrics, caption=wrong, **said, **timed)
    other = job_of(tmp_path, "method=flowcache_fast", "reuse.threshold=0.5")
    made(other, "a", 0.1, latency_s=1.0, metrics={"psnr": 1.0, "ssim": 0.1})  # no default: in no table
    return job_of(tmp_path)


@pytest.fixture
def measured(job) -> pd.DataFrame:
    return main_table(collect(job), job)


def test_every_figure_has_its_interval_and_count(job, measured):
    assert list(measured.index) == ["vanilla", "flowcache_slow", "flowcache_fast"]
    fast = measured.loc["flowcache_fast"]
    assert (fast["n"], fast["reuse.threshold"], fast["identical_videos"]) == (8, 0.015, 1)
    assert list(measured["options"].dropna()) == ["reuse.threshold 0.01", "reuse.threshold 0.015"]  # vanilla has none
    assert (fast["compute_left"], fast["compute_left_ci95"], fast["pflops_ci95"]) == (0.5, 0, 0)
    assert fast["psnr"] == pytest.approx(np.mean(FAST[:7]))  # without the identical one
    assert (fast["psnr_n"], fast["ssim_n"], measured.loc["flowcache_slow", "lpips_n"]) == (7, 8, 6)
    assert (fast["speedup"], fast["speedup_low"], fast["speedup_high"]) == median_and_interval(
        [2.0 + place / 5 for place in range(TIMED)]
    )
    assert (fast["speedup_n"], fast["latency_s_n"], fast["efficiency_n"]) == (TIMED,) * 3
    assert fast["efficiency"] == pytest.approx(fast["speedup"] * 0.5)
    assert (fast["latency_first_chunk_s"], fast["latency_first_chunk_s_n"]) == (5.0, 7)  # timed in a pair or not
    assert (fast["fps"], fast["fps_n"], measured.loc["vanilla", "fps"]) == (192 / 5, 8, 192 / 10)
    assert np.isnan(measured.loc["vanilla", "latency_first_chunk_s"])  # of records that say nothing of it
    assert (fast["caption_right"], measured.loc["vanilla", "caption_right"]) == (7 / 8, 1)
    assert (fast["seam_ratio"], fast["seam_ratio_n"]) == (pytest.approx(1.35), 8)
    assert (fast["position_jump_pixels"], fast["position_jump_pixels_n"]) == (3, 7)
    assert measured.loc["vanilla", ["psnr", "ssim", "speedup"]].isna().all()
    table, _, _ = describe(measured, paired_table(collect(job), job, list(measured.index)), job, "somewhere")
    cells = cells_of(table)
    bare = {"method", "n", "options", "VBench %", "identical", "deviates"}  # no measurements, or none made
    counts = {"latency s": "n 6", "speed-up": "n 6", "efficiency": "n 6"}
    counts_of = {
        "vanilla": {"latency s": "n 6", "jump px": "n 7"},  # six prompts, timed beside both methods
        "flowcache_slow": {**counts, "LPIPS": "n 6", "jump px": "n 7"},
        "flowcache_fast": {**counts, "PSNR dB": "n 7", "jump px": "n 7", "first chunk s": "n 7"},
    }
    for method, row in cells.items():
        for heading, (value, details) in row.items():
            assert heading in bare or value in ("-", "n/a") or " to " in details or "±" in details, (method, heading)
            assert re.findall(r"n \d+", details) == [c for h, c in counts_of[method].items() if h == heading], heading


def cells_of(table: Table) -> dict[str, dict[str, tuple[str, str]]]:
    """Values and their details, by the table's first column and heading."""
    headings = [column.heading for column in table.shown]
    return {row[0][0]: dict(zip(headings, row, strict=True)) for row in table.cells()}


def test_a_missing_metric_is_told_from_one_that_does_not_apply(job, measured):
    paired = paired_table(collect(job), job, list(measured.index))
    ours, differences, _ = describe(measured, paired, job, "somewhere")
    lpips = {method: row["LPIPS"][0] for method, row in cells_of(ours).items()}
    assert lpips == {"vanilla": "-", "flowcache_slow": "0.1000", "flowcache_fast": "n/a"}
    assert "LPIPS n/a: its network did not load (flowcache_slow)" in ours.notes
    assert f"LPIPS n/a: {NO_WEIGHTS} (flowcache_fast)" in ours.notes
    place = [column.heading for column in differences.shown].index("LPIPS")
    assert [row[place][0] for row in differences.cells()] == ["-", "-", "n/a"]


def test_a_metric_that_no_video_has_keeps_its_column_and_reason(tmp_path):
    job = job_of(tmp_path, "method=flowcache_fast")
    for prompt in PROMPTS:
        made(job, prompt, 0.5, metrics={"psnr": 30.0, "lpips": None}, notes={"lpips": NO_WEIGHTS})
    measured = main_table(collect(job), job)
    table, *_ = describe(measured, paired_table(collect(job), job, list(measured.index)), job, "somewhere")
    assert cells_of(table)["flowcache_fast"]["LPIPS"] == ("n/a", "")
    assert f"LPIPS n/a: {NO_WEIGHTS} (flowcache_fast)" in table.notes


def test_few_pairs_are_shown_with_their_number_alone(tmp_path):
    job = job_of(tmp_path, "method=flowcache_fast")
    for place, prompt in enumerate(PROMPTS):
        timed = {"baseline_latency_s": 10.0 + place} if place < 3 else {}
        made(job, prompt, 0.5, latency_s=5.0, **timed)
    table, *_ = describe(main_table(collect(job), job), pd.DataFrame(columns=["method", "against"]), job, "somewhere")
    assert cells_of(table)["flowcache_fast"]["speed-up"] == ("2.20x", "(n 3)")
    assert "nan" not in markdown(table)
    assert "too narrow" in table.text


def test_differences_are_paired_by_prompt(job, measured):
    paired = paired_table(collect(job), job, list(measured.index)).set_index(["method", "against"])
    fast = paired.loc["flowcache_fast", "flowcache_slow"]
    differences = paired_difference(FAST[:7], SLOW[:7])  # not the prompt whose fast video has no PSNR
    assert tuple(fast[["psnr", "psnr_low", "psnr_high"]]) == pytest.approx(differences)
    assert (fast["psnr_n"], fast["compute_left_n"], fast["time_left_n"]) == (7, 8, TIMED)
    assert fast["compute_left"] == pytest.approx(-0.3)
    share = np.mean([1 / (10 + place) for place in range(TIMED)])
    assert fast["time_left"] == pytest.approx((5 - 8) * share)
    vanilla = paired.loc["flowcache_fast", "vanilla"]
    assert vanilla["caption_right"] == -1 / 8
    assert vanilla["time_left"] == pytest.approx(5 * share - 1)
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
    assert "Deviates, a: reuse.last_step own (published: global)," in ours.notes[1]
    assert "forecast.quantity the model's sound form" in ours.notes[1]


def test_what_the_published_code_does_deviates_in_nothing():
    published = {"reuse.last_step": "global", "forecast.quantity": "displacement", "refresh_clean_kv": False}
    options = {**published, "near_clean": False, "reuse.distance": "embedded_latent"}
    options |= {"reuse.threshold": 0.015, "reuse.warmup_steps": 5}
    assert method_deviation("magi", "flowcache_fast", options) is None
    told = method_deviation("magi", "flowcache_slow", options | {"refresh_clean_kv": True})
    assert told == "refresh_clean_kv True (published: False), reuse.threshold 0.015 (published: 0.01)"
    options = {"reuse.threshold": 0.02, "reuse.published": True}
    assert "the paper gives none" in method_deviation("magi", "teacache_slow", options)
    assert method_deviation("skyreels", "vanilla_kv", {}) == "no row of the paper's"
    assert method_deviation("magi", "vanilla", {}) is None
    paper = {"num_frames": 240, "num_steps": 64, "height": 720, "width": 720, "device": "cuda"}
    paper |= {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
    assert setting_deviation("magi", {**paper, "setting": "paper", "model": "magi"}) is None
    told = setting_deviation("magi", {**paper, "setting": "paper", "shift": 1.0})
    assert told == "all rows: shift 1.0 (reported: its own)"


def test_marks_give_equal_deviations_one_letter():
    letters, notes = marks(pd.Series({"a": "x", "b": None, "c": "y", "d": "x"}), "Deviates")
    assert letters.dropna().to_dict() == {"a": "a", "c": "b", "d": "a"}
    assert notes == ["Deviates, a: x", "Deviates, b: y"]


def vbench_scores(job: Job, method: str, score: float, dimensions=NAMES, num_prompts: int = 6) -> None:
    """What experiments.vbench_full keeps: every video of a prompt scores ``score`` and a little more by prompt."""
    mine = at_defaults(collect(job), job, method)
    prompts = sorted(mine["prompt"])[:num_prompts]
    keys = dict(zip(mine["prompt"], mine["key"], strict=True))
    per_video = {f"{prompt}-0.mp4": score + 0.002 * place for place, prompt in enumerate(prompts)}
    result = {"mean": np.mean(list(per_video.values())), "per_video": per_video, "num_expected": len(prompts)}
    content = {
        "videos": {f"{prompt}-0.mp4": keys[prompt] for prompt in prompts},
        "dimensions": dict.fromkeys(dimensions, result),
        "not_run": {},
    }
    path = job.output_dir / "vbench" / f"{method}{len(dimensions)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


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
    assert fast["vbench"] == pytest.approx(expected_total(0.805))
    assert expected_total(0.80) - 1e-9 < fast["vbench_low"] < fast["vbench"]
    assert fast["vbench"] < fast["vbench_high"] < expected_total(0.81) + 1e-9
    assert fast["vbench_n"] == 6
    paired = paired_table(frame, job, list(measured.index)).set_index(["method", "against"])
    difference = paired.loc["flowcache_fast", "vanilla"]
    assert difference["vbench"] == pytest.approx(expected_total(0.805) - expected_total(0.825))
    # Every prompt differs by as much, so that the pairs leave no doubt, however wide each interval is.
    assert difference["vbench_high"] - difference["vbench_low"] < 1e-9
    ours, *_ = describe(measured, paired.reset_index(), job, "somewhere")
    assert f"VBench % n/a: no scores of these videos; {HOW} (flowcache_slow)" in ours.notes


def test_vbench_totals_over_different_prompts_are_not_subtracted(job):
    vbench_scores(job, "flowcache_fast", 0.8)
    vbench_scores(job, "vanilla", 0.82, num_prompts=7)
    frame = collect(job)
    paired = paired_table(frame, job, list(main_table(frame, job).index)).set_index(["method", "against"])
    assert np.isnan(paired.loc[("flowcache_fast", "vanilla"), "vbench"])


def test_a_partial_vbench_total_is_none_and_says_so(job):
    vbench_scores(job, "flowcache_fast", 0.8, dimensions=NAMES[:3])
    total = read_total(job.output_dir, at_defaults(collect(job), job, "flowcache_fast")["key"])
    assert (total.percent, total.reason) == (None, f"Total (partial: 3 of 16 dimensions); {HOW}")
    (job.output_dir / "vbench" / "damaged.json").write_text('{"videos"', encoding="utf-8")
    vbench_scores(job, "flowcache_fast", 0.8, num_prompts=7)  # more videos: the better known
    assert read_total(job.output_dir, at_defaults(collect(job), job, "flowcache_fast")["key"]).num_videos == 7
    assert read_total(job.output_dir, ["other videos"]).reason == f"no scores of these videos; {HOW}"


def test_the_command_writes_three_forms_and_the_same_again(job, tmp_path, capsys):
    assert tables.main([f"output_dir={job.output_dir}"]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    stem = "magi_embedded_main"
    assert set(first) == {f"{stem}.md", f"{stem}.tex", f"{stem}.csv", f"{stem}_paired.csv"}
    assert tables.main([f"output_dir={job.output_dir}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == first
    assert tables.main(["model=skyreels", f"output_dir={job.output_dir}"]) == 2  # no records of it
    assert "make them first" in capsys.readouterr().err


def test_videos_of_another_seed_are_in_no_main_table(job, tmp_path, capsys):
    """Placement makes some methods' default videos, and not the others', of a second seed too."""
    assert tables.main([f"output_dir={tmp_path}"]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    other = job_of(tmp_path, "method=flowcache_fast", "seed=7")
    for prompt in PROMPTS:
        made(other, prompt, 0.5, metrics={"psnr": 90.0, "ssim": 1.0})
    assert tables.main([f"output_dir={tmp_path}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == first
    assert b"embedded setting, seed 1234; " in first["magi_embedded_main.md"]
    assert tables.main([f"output_dir={tmp_path}", "seed=7"]) == 0
    (row,) = pd.read_csv(tmp_path / "tables" / "magi_embedded_main.csv").to_dict("records")
    assert (row["method"], row["n"], row["psnr"]) == ("flowcache_fast", len(PROMPTS), 90.0)
    assert tables.main([f"output_dir={tmp_path}", "seed=8"]) == 2
    assert "no finished records are of seed 8; give seed=<one of 7, 1234>" in capsys.readouterr().err


def test_videos_of_other_prompts_than_the_settings_are_in_no_main_table(tmp_path, capsys):
    """The rich clips are of some methods' default options, and not of the others'."""
    rich = "experiments/prompts/embedded_rich.txt"
    for source, methods in ((None, ("vanilla", "flowcast_fast", "every_k")), (rich, ("vanilla", "flowcast_fast"))):
        for method in methods:
            given = [] if source is None else [f"prompts={source}"]
            job = job_of(tmp_path, f"method={method}", "num_prompts=3", *given)
            for prompt in job.prompts:
                made(job, prompt, 0.5, metrics={} if method == "vanilla" else {"psnr": 40.0 if source else 30.0})

    def counts(*arguments: str) -> dict[str, tuple[int, float]]:
        assert tables.main([f"output_dir={tmp_path}", *arguments]) == 0
        data = pd.read_csv(tmp_path / "tables" / "magi_embedded_main.csv").set_index("method")
        return {name: (row["n"], row["psnr"]) for name, row in data.drop(index="vanilla").iterrows()}

    assert counts() == {"every_k": (3, 30.0), "flowcast_fast": (3, 30.0)}
    assert counts("num_prompts=2") == {"every_k": (2, 30.0), "flowcast_fast": (2, 30.0)}
    assert counts(f"prompts={rich}") == {"flowcast_fast": (3, 40.0)}
    assert tables.main([f"output_dir={tmp_path}", "prompts=a red circle bouncing on a grey background"]) == 2
    assert "no finished records of seed 1234 are of these prompts; leave prompts out" in capsys.readouterr().err


def test_records_of_no_default_are_refused(tmp_path):
    job = job_of(tmp_path, "method=flowcache_fast", "reuse.threshold=0.5")
    made(job, "a", 0.5, metrics={"psnr": 30.0})
    with pytest.raises(BadInput, match="there are records, of flowcache_fast, but none at a method's default options"):
        main_table(collect(job), job)


def test_one_table_of_two_codes_says_which_rows_are_of_which(tmp_path, monkeypatch, capsys):
    old, new = "0123456789abcdef", "feedfacefeedface"
    vanilla, slow, fast = (job_of(tmp_path, f"method={m}") for m in ("vanilla", "flowcache_slow", "flowcache_fast"))
    arguments = [f"output_dir={tmp_path}"]
    monkeypatch.setattr(identity, "code_hash", lambda modules: old)
    for prompt in PROMPTS[:3]:
        made(vanilla, prompt, latency_s=10.0)
        made(fast, prompt, 0.9, metrics={"psnr": 20.0})
    assert tables.main(arguments) == 0
    assert "Videos by code" not in capsys.readouterr().out  # of one code there is nothing to tell apart
    csv = (tmp_path / "tables" / "magi_embedded_main.csv").read_text(encoding="utf-8")
    assert not any(f"{old} " in line for line in csv.splitlines())
    monkeypatch.setattr(identity, "code_hash", lambda modules: new)
    assert tables.main(arguments) == 2
    assert "no finished records" in capsys.readouterr().err
    for prompt in PROMPTS[:2]:
        made(slow, prompt, 0.5, metrics={"psnr": 30.0})
    made(fast, PROMPTS[0], 0.9, metrics={"psnr": 50.0})  # in the place of the older one

    assert tables.main(arguments) == 0  # the older are left out
    printed = capsys.readouterr().out
    assert old not in printed
    assert f"code {new}" in printed
    assert list(main_table(collect(fast), fast).index) == [
        "flowcache_fast",
        "flowcache_slow",
    ]  # what computes more first

    assert tables.main([*arguments, "any_code=true"]) == 0
    printed, *_ = capsys.readouterr().out.split("**Paired differences**")
    caption = printed.splitlines()[0]
    assert f"code {old}, {new}" in caption
    assert (
        f"- Videos by code: vanilla {old} 3; flowcache_fast {old} 2, {new} 1; flowcache_slow {new} 2"
        in printed.splitlines()
    )
    both = main_table(collect(job := job_of(tmp_path, "any_code=true")), job)
    assert both["n"].to_dict() == {"vanilla": 3, "flowcache_slow": 2, "flowcache_fast": 3}
    assert both.loc["flowcache_fast", "psnr"] == 30  # of 50, 20 and 20
    latex = (tmp_path / "tables" / "magi_embedded_main.tex").read_text(encoding="utf-8")
    assert f"Videos by code: vanilla {old} 3;" in latex


def test_a_baseline_that_is_another_video_is_told_beside_the_figures(tmp_path):
    """SkyReels-V2's vanilla is bidirectional; the uniform method's default is too, the chunkwise one's is not."""
    for method in ("vanilla", "teacache_fast", "flowcache_fast"):
        metrics = {} if method == "vanilla" else {"psnr": 18.5}
        made(job_of(tmp_path, "model=skyreels", f"method={method}"), "a", 0.5, metrics=metrics)
    job = job_of(tmp_path, "model=skyreels")
    measured = main_table(collect(job), job)
    ours, differences, _ = describe(measured, paired_table(collect(job), job, list(measured.index)), job, "somewhere")
    psnr = {method: row["PSNR dB"][0] for method, row in cells_of(ours).items()}
    assert psnr == {"vanilla": "-", "flowcache_fast": "18.50 †", "teacache_fast": "18.50"}
    assert ours.notes[0].startswith("† of flowcache_fast: another video from the start, for vanilla's chunks see later")
    assert ours.notes[0].endswith("not what caching costs. baseline=vanilla_kv shows that")
    assert differences.notes == ours.notes[:1]
    assert r"18.50 \dag{}" in latex("main", [ours])


def test_compute_has_the_unit_that_fits(tmp_path):
    made(job_of(tmp_path, "method=vanilla"), "a")
    job = job_of(tmp_path, "method=flowcache_fast")
    for place, prompt in enumerate("ab"):
        made(job, prompt, 0.3 + place / 10)
    measured = main_table(collect(job), job)
    table, *_ = describe(measured, pd.DataFrame(columns=["method", "against"]), job, "somewhere")
    assert cells_of(table)["vanilla"]["TFLOPs"] == ("1", "(n 1)")
    assert cells_of(table)["flowcache_fast"]["TFLOPs"] == ("0.35", "± 0.64")
    assert table.data["pflops"].tolist() == [0.001, 0.00035]  # in full, one unit whatever is shown
