"""What a sweep says while it runs and when it ends, from records that no model was run for."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from experiments.job.cli import compose_config
from experiments.job.errors import Failure, RunFailed
from experiments.records import store_of
from experiments.records.collect import flat
from experiments.records.settings import label, labelled, told_apart
from experiments.run import sweep
from experiments.run.main_job import run_job
from experiments.run.sweep import Countdown, finished_at, told_by_setting
from experiments.run.workers import run_jobs
from tests.experiments.made_records import job_of, made

PROMPTS = "prompts=[a,b]"


@pytest.fixture
def jobs(tmp_path):
    """Vanilla, and a method at two thresholds."""
    fast = ["method=flowcache_fast", "reuse.threshold="]
    settings = [["method=vanilla"], *([fast[0], fast[1] + threshold] for threshold in ("0.1", "0.2"))]
    return labelled([job_of(tmp_path, PROMPTS, *overrides) for overrides in settings])


def test_what_is_left_is_said_once_it_means_something(monkeypatch, capsys):
    """Two workers of three videos a prompt tell in bursts, the first of them late."""
    clock = iter([100.0, *([140.0] * 3), *([148.0] * 3)])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    countdown = Countdown(60, first_round=6)
    for _ in range(14):
        countdown("a video")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 60  a video"
    assert [number for number, line in enumerate(lines, 1) if "left" in line] == [12, 13, 14]
    assert lines[11] == "12 of 60, 5 min left  a video"  # 48 at 6 in 40 s


def test_a_line_a_setting_says_what_became_of_it(jobs, tmp_path):
    vanilla, low, high = jobs
    for prompt, latency_s in (("a", 1.0), ("b", 3.0)):
        made(vanilla, prompt, latency_s=latency_s)
    made(low, "a", 0.5, latency_s=1.0)
    before = finished_at(jobs)
    made(high, "a", 0.25, latency_s=0.5)
    failed = made(high, "b", 0.25)
    failed.status = "failed"
    store_of(high).save(failed)
    way, fast = "(1 worker x 1 thread, a CPU)", "flowcache_fast, reuse.threshold"
    assert list(told_by_setting(jobs, before)) == [
        f"vanilla: 0 made, 0 failed, 2 finished in all; median 2 s {way}; compute left 1.000",
        f"{fast} 0.1: 0 made, 0 failed, 1 finished in all; median 1 s {way}; compute left 0.500",
        f"{fast} 0.2: 1 made, 1 failed, 1 finished in all; median 0.5 s {way}; compute left 0.250",
    ]


def test_a_method_without_videos_says_so(jobs):
    assert list(told_by_setting(jobs[:1], {})) == ["vanilla: 0 made, 0 failed, 0 finished in all"]


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "tasks=2"]])
def test_a_sweep_ends_with_its_summary_even_where_videos_failed(launcher, tmp_path, monkeypatch, capsys):
    def make(launcher, jobs, find_jobs):
        print("2 videos to make")
        made(jobs[0], jobs[0].prompts[0], latency_s=2.0)
        raise RunFailed([Failure("vanilla", "b", RuntimeError("broken"))])

    monkeypatch.setattr(sweep, "share_out", make)
    monkeypatch.setattr(sweep, "launcher_of", lambda arguments: (None, [a for a in arguments if a not in launcher]))
    assert sweep.main([PROMPTS, "num_prompts=2", "wandb.mode=disabled", f"output_dir={tmp_path}", *launcher]) == 1
    said = capsys.readouterr().out.splitlines()
    assert (
        "vanilla: 1 made, 0 failed, 1 finished in all; median 2 s (1 worker x 1 thread, a CPU); compute left 1.000"
        in said
    )
    assert said[-1] == f"records are in {tmp_path / 'runs'}"


def test_a_run_with_nothing_to_make_shows_no_bar(tmp_path):
    overrides = ["method=vanilla", PROMPTS, "latency_pairs=0", "wandb.mode=disabled", f"output_dir={tmp_path}"]
    job = job_of(tmp_path, *overrides[:-1])
    for prompt in job.prompts:
        made(job, prompt, latency_s=1.0, chunk_latency_s=[1.0], notes={"caption": "it names no shape"})
    console = Console(record=True, width=200, quiet=False)
    assert len(run_job(compose_config(overrides), console)) == 2
    printed = console.export_text()
    assert re.search("2 finished already, 0 videos to make", printed)
    assert "generating" not in printed


@pytest.mark.parametrize(
    ("experiment", "told"),
    [
        ("ablation_lambda", ["vanilla", *(f"flowcache_fast, kv.mix_lambda {x}" for x in ["0", "0.03", "0.07"])]),
        ("long_video", ["vanilla", "flowcache_fast", "flowcache_fast, kv.budget 2 chunks"]),
        ("ablation_refresh", ["vanilla", "flowcache_slow, refresh_clean_kv true"]),
        ("main_table", ["vanilla", "ar_cache"]),
    ],
)
def test_settings_that_differ_are_named_and_told_apart(experiment, told):
    found = [job.label for job in sweep.find_jobs([f"experiment={experiment}"])]
    assert found[: len(told)] == told
    assert len(set(found)) == len(found)


def test_options_of_nested_parts_are_named_by_their_dots():
    whole, kept = {"part": "all", "budget": None}, {"part": "some", "budget": "2 chunks", "mix_lambda": 0.07}
    settings = [
        {"method": "mine", **flat({"reuse": {"threshold": 0.02, "steps": 5}, "kv": whole})},
        {"method": "mine", **flat({"reuse": {"threshold": 0.04, "steps": 5}, "kv": kept})},
        {"method": "other", **flat({"reuse": {"threshold": 0.5, "steps": 7}})},
    ]
    names = told_apart(settings[:2])
    assert names == ("reuse.threshold", "kv.budget")  # not what comes with a part that one has alone
    assert told_apart(settings) == names  # another method's values tell nothing apart
    assert [label(setting, names) for setting in settings] == [
        "mine, reuse.threshold 0.02",
        "mine, reuse.threshold 0.04, kv.budget 2 chunks",
        "other, reuse.threshold 0.5",
    ]


def test_a_setting_without_what_another_has_options_of_is_told_apart():
    plan = {"plan": {"plan": "a_plan", "sha256": "0123"}}
    settings = [{"method": "mine", **flat({"reuse": reuse})} for reuse in (plan, {"plan": None})]
    names = told_apart(settings)
    assert names == ("reuse.plan.plan",)
    assert [label(setting, names) for setting in settings] == ["mine, reuse.plan.plan a_plan", "mine"]


def test_seeds_are_told_apart(tmp_path):
    labels = [job.label for job in labelled([job_of(tmp_path, "method=vanilla", f"seed={seed}") for seed in (1, 2)])]
    assert labels == ["vanilla, seed 1", "vanilla, seed 2"]


def test_every_video_says_its_setting_as_it_is_made(small_job):
    jobs = labelled([small_job(f"reuse.threshold={t}", "num_prompts=1", "metrics=[]") for t in (0.3, 0.6)])
    told: list[str] = []
    run_jobs(jobs, jobs[0].prompts, told.append)
    (prompt,) = jobs[0].prompts
    assert [line for line in told if not line.startswith("vanilla")] == [
        f"flowcache_fast, reuse.threshold {t}: {prompt}" for t in (0.3, 0.6)
    ]
