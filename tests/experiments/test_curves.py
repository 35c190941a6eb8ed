"""Curves of an experiment: which method and forecast has one of its own, over several seeds, in which quality."""

from __future__ import annotations

import json

import pytest

from experiments.job.errors import BadInput
from experiments.job.experiment import jobs_of, read_experiment
from experiments.job.job import Job
from experiments.records.collect import collect, described
from experiments.show.methods import family
from experiments.show.results import markdown
from experiments.show.reuse_curve import (
    PSNR_CAP_DB,
    Curves,
    at_equal_compute,
    curves_of,
    draw_reuse_curve,
    reuse_points,
    reuse_videos,
    tables,
)
from experiments.show.style import UNKNOWN_LOOK, colour_and_marker
from tests.experiments.made_records import job_of, made

PROMPTS, SEEDS = ("a", "b", "c"), (1, 2)
CURVES = Curves(
    option="reuse.warmup_steps",
    title="warm-up",
    at=0,
    compared="flowcast",
    shares=(0.25, 0.5),
    without={"reuse.plan": "plain rule"},
)
LATENT = Curves(**{**CURVES.__dict__, "quality": "latent_snr"})


@pytest.fixture
def settings(tmp_path) -> list[tuple[list[str], float, float]]:
    """Overrides, compute left, PSNR in dB; a plan's shares are met nearly."""
    path = tmp_path / "a_plan.json"
    steps = {"first_window": [[0, 3]], "later_windows": []}
    path.write_text(json.dumps({"times": [0, 1, 2, 3, 4], "shares": {"0.25": steps, "0.5": steps}}), encoding="utf-8")
    cast, every = ["method=flowcast_fast", f"reuse.plan={path}"], ["method=every_k", "reuse.warmup_steps=0"]
    return [
        ([*cast, "reuse.share=0.25"], 0.26, 50),
        ([*cast, "reuse.share=0.5"], 0.49, 70),
        (["method=flowcast_fast", "reuse.plan=null", "reuse.share=0.25"], 0.24, 40),
        (["method=flowcast_fast", "reuse.plan=null", "reuse.share=0.5"], 0.52, 50),
        ([*every, "reuse.every=2"], 0.55, 45),
        ([*every, "reuse.every=5"], 0.2, 30),
        ([*every, "reuse.every=2", "forecast=corrected"], 0.55, 55),
        ([*every, "reuse.every=5", "forecast=corrected"], 0.2, 35),
    ]


@pytest.fixture
def jobs(tmp_path, settings) -> list[Job]:
    """With records on every prompt and seed, the second prompt's easier by 1 dB; latents have 10 dB less."""
    jobs = []
    for seed in SEEDS:
        jobs.append(job_of(tmp_path, "method=vanilla", f"seed={seed}"))
        for prompt in PROMPTS:
            made(jobs[-1], prompt)
        for overrides, share, psnr in settings:
            jobs.append(job_of(tmp_path, *overrides, f"seed={seed}"))
            for prompt in PROMPTS:
                value = psnr + (prompt == "b")
                made(jobs[-1], prompt, share, metrics={"psnr": value, "ssim": 0.9, "latent_snr": value - 10})
    return jobs


def videos_of(jobs: list[Job], curves: Curves):
    return reuse_videos(collect(jobs[0]), jobs[0], jobs, curves, "placement")[0]


def test_another_forecast_and_no_plan_are_curves_of_their_own(jobs):
    points = reuse_points(videos_of(jobs, CURVES))
    assert points.groupby("family")["n"].agg(list).to_dict() == {
        "every_k": [6, 6],
        "every_k + corrected": [6, 6],
        "flowcast": [6, 6],
        "flowcast, plain rule": [6, 6],
    }
    figure = draw_reuse_curve(points, CURVES, "vanilla", "here")
    lines = {bar.get_label(): bar.lines[0] for bar in figure.axes[0].containers}
    colours = {name: line.get_color() for name, line in lines.items()}
    assert (
        colours["every_k"] == colours["every_k + corrected"] != colours["flowcast"] == colours["flowcast, plain rule"]
    )
    styles = [line.get_linestyle() for line in lines.values()]
    assert styles == ["-", "--", "-", "--"]


def test_seeds_are_compared_one_by_one_at_the_shares_that_are_listed(jobs):
    compared = at_equal_compute(videos_of(jobs, CURVES), CURVES).set_index(["against", "compute_left"])
    assert set(compared["difference_db_n"]) == {6}
    # At 0.26 and 0.49, the nearest of the plan's settings; 70 and 71 dB count as 60.
    at_half = 30 + 15 * (0.49 - 0.2) / 0.35
    assert compared.loc[("every_k", 0.5), "difference_db"] == pytest.approx(60 - at_half - 2 / 6)
    assert compared.loc[("every_k", 0.5), "uncapped_difference_db"] == pytest.approx(70 - at_half)
    at_quarter = 35 + 20 * (0.26 - 0.2) / 0.35
    assert compared.loc[("every_k + corrected", 0.25), "difference_db"] == pytest.approx(50 - at_quarter)
    assert compared.loc[("flowcast, plain rule", 0.25), "low"] > 0
    assert set(compared["won"]) == {6}


def test_latents_are_compared_uncapped(jobs):
    videos = videos_of(jobs, LATENT)
    compared = at_equal_compute(videos, LATENT).set_index(["against", "compute_left"])
    assert compared.loc[("every_k", 0.5), "difference_db"] == pytest.approx(70 - 30 - 15 * (0.49 - 0.2) / 0.35)
    points = reuse_points(videos, "latent_snr")
    assert points["latent_snr"].max() == pytest.approx(60 + 1 / 3)
    text = "".join(map(markdown, tables(points, compared.reset_index(), LATENT, "vanilla", "here")))
    assert "| latents' SNR difference dB | videos won |" in text
    assert "uncapped (140 dB where equal)" in text
    assert "PSNR" not in text


def test_nothing_is_interpolated_up_to_a_setting_that_skipped_nothing(jobs):
    videos = videos_of(jobs, CURVES)
    every_k = videos["family"] == "every_k"
    most = videos[every_k].groupby(["prompt", "seed"])["flops_share"].transform("max") == videos["flops_share"][every_k]
    videos.loc[most.index[most], ["flops_share", "psnr"]] = 1.0, 60.0
    compared = at_equal_compute(videos, CURVES)
    assert "every_k" not in set(compared["against"])
    assert "every_k + corrected" in set(compared["against"])


def test_psnr_is_shown_capped_and_as_measured(jobs):
    made(jobs[1], "a", 0.26, metrics={"psnr": "inf", "latent_snr": 140.0})
    videos = videos_of(jobs, CURVES)
    points = reuse_points(videos).set_index(["family", "told"])
    row = points[points.index.get_level_values("family") == "flowcast"].iloc[0]
    assert row["psnr"] == pytest.approx((PSNR_CAP_DB + 50 * 3 + 51 * 2) / 6)
    assert (row["psnr_uncapped"], row["psnr_uncapped_n"]) == (pytest.approx((50 * 3 + 51 * 2) / 5), 5)
    assert (row["median"], row["identical_videos"]) == (50.5, 1)
    text = markdown(tables(reuse_points(videos), at_equal_compute(videos, CURVES), CURVES, "vanilla", "here")[1])
    assert "| PSNR dB | uncapped | median | identical |" in text


def test_a_video_without_latents_is_none_of_their_curves(jobs):
    for job in jobs:
        if job.method_name == "every_k" and job.method.reuse.every == 5:
            for prompt in PROMPTS:
                made(job, prompt, 0.2, metrics={"psnr": 30.0, "latent_snr": None}, notes={"latent_snr": "without"})
    latent, notes = reuse_videos(collect(jobs[0]), jobs[0], jobs, LATENT, "placement")
    assert reuse_points(latent, "latent_snr").groupby("family").size()["every_k"] == 1
    assert notes == ["Left out, made without latents: 6 of every_k"]
    assert reuse_points(videos_of(jobs, CURVES)).groupby("family").size()["every_k"] == 2


def test_records_that_never_had_latents_say_what_to_do(tmp_path):
    jobs = [job_of(tmp_path, "method=vanilla"), job_of(tmp_path, "method=every_k", "reuse.warmup_steps=0")]
    made(jobs[0], "a")
    made(jobs[1], "a", 0.5, metrics={"psnr": 40.0})
    with pytest.raises(
        BadInput, match=r"no video has latent_snr; .* experiments.sweep experiment=placement model=magi$"
    ):
        videos_of(jobs, LATENT)


def test_two_methods_are_compared_each_with_every_other(jobs):
    both = Curves(**{**CURVES.__dict__, "compared": ["flowcast", "every_k"]})
    videos = videos_of(jobs, both)
    compared = at_equal_compute(videos, both).set_index(["compared", "against", "compute_left"])
    alone = at_equal_compute(videos, CURVES).set_index(["against", "compute_left"])
    assert compared.loc["flowcast"].to_dict("index") == alone.to_dict("index")
    assert ("every_k", "every_k + corrected", 0.5) in compared.index
    assert ("every_k", "every_k", 0.5) not in compared.index
    assert compared.loc[("every_k", "every_k + corrected", 0.25), "difference_db"] < 0
    text = markdown(tables(reuse_points(videos), compared.reset_index(), both, "vanilla", "here")[0])
    assert "flowcast or every_k minus another method" in text
    assert "| of | against | compute left |" in text


def test_what_a_file_says_of_its_curves():
    assert [each.quality for each in curves_of(read_experiment("placement", []))] == ["psnr", "latent_snr"]
    (old,) = curves_of(read_experiment("reuse_curve", []))
    assert (old.quality, old.shares) == ("psnr", (0.3, 0.4, 0.5, 0.6, 0.75, 0.9))
    with pytest.raises(BadInput, match="quality 'ssim' is none that they show; choose from psnr, latent_snr"):
        curves_of({"curves": {"option": "a", "title": "a", "at": 0, "compared": "b", "quality": "ssim"}})


def test_every_method_of_the_field_is_on_the_curves_that_are_compared():
    """One that has a warm-up by default is in the table of settings alone, and nothing says that it is left out. Of the
    models, Wan's defaults have one."""
    jobs, experiment = jobs_of("field", ["model=wan", "num_prompts=1"])
    curves = curves_of(experiment)[0]
    values = {}
    for job in jobs:
        values.setdefault(family(job.method_name), set()).add(described(job).get(curves.option))
    assert [name for name, own in values.items() if not own & {curves.at, None}] == []


def test_settings_of_a_curve_take_no_main_methods_place_where_there_is_no_curve(tmp_path):
    """Causal Wan of many steps has a Pareto figure alone; a setting that is one's default dropped the other's."""
    for method in ("vanilla", "flowcache_fast", "flowcache_slow"):
        made(job_of(tmp_path, "model=wan_multistep", f"method={method}"), "a", metrics={"psnr": 30.0})
    job = job_of(tmp_path, "model=wan_multistep")
    jobs, experiment = jobs_of("reuse_curve", ["model=wan_multistep", f"output_dir={tmp_path}", "num_prompts=1"])
    videos, _ = reuse_videos(collect(job), job, jobs, curves_of(experiment)[0])
    assert set(videos["method"]) == {"flowcache_fast", "flowcache_slow"}


def test_a_method_keeps_its_colour_whatever_its_forecast():
    assert colour_and_marker("every_k + corrected") == colour_and_marker("every_k") != UNKNOWN_LOOK
    assert (family("flowcache_fast + corrected"), family("flowcache_slow")) == ("flowcache + corrected", "flowcache")


def test_lpips_and_captions_are_compared_beside_psnr(jobs):
    videos = videos_of(jobs, CURVES)
    ours = videos["family"] == "flowcast"
    videos = videos.assign(lpips=(~ours) * 0.02 + 0.01, caption_right=ours | (videos["prompt"] == "a"))
    compared = at_equal_compute(videos, CURVES)
    row = compared.set_index(["against", "compute_left"]).loc[("every_k", 0.5)]
    assert row["lpips_difference"] == pytest.approx(-0.02)
    assert row["caption_difference"] == pytest.approx(1 - 1 / len(PROMPTS))
    text = markdown(tables(reuse_points(videos), compared, CURVES, "vanilla", "here")[0])
    assert "| videos won | LPIPS | captions shown |" in text
    assert "-0.0200 (-0.0200 to -0.0200; n 6)" in text
