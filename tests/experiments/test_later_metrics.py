"""A metric that is asked for later is measured from the finished videos' files; nothing else of them changes."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from eval.errors import MetricUnavailable
from experiments.job.cli import compose_config
from experiments.job.errors import RunFailed
from experiments.job.job import Job, make_job
from experiments.records import Record, RecordStore, new_record, store_of
from experiments.records.collect import collect, finished
from experiments.run import measure, sweep, video_metrics
from experiments.run.launch import Launcher
from experiments.run.main_job import run_job
from experiments.run.measure import QUALITY
from experiments.run.runner import Runner
from tests.experiments.conftest import SMALL

FAST = [*SMALL, "setting.num_frames=24", "latency_pairs=0", "metrics=[psnr]"]
MORE = "metrics=[psnr,ssim,caption]"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """A folder of a method's two videos and their references, measured in PSNR alone."""
    folder = tmp_path_factory.mktemp("made")
    Runner(make_job(compose_config([*FAST, f"output_dir={folder}"]))).run()
    return folder


@pytest.fixture
def arguments(made_once, tmp_path, monkeypatch) -> list[str]:
    """Of the job that made them, in a copy of the folder where no video can be made."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("eval.latency.generate", no_video)
    return [*FAST, f"output_dir={tmp_path}"]


def no_video(*args, **kwargs):
    raise AssertionError("a video was to be made")


def job_of(arguments: list[str], *more: str) -> Job:
    return make_job(compose_config([*arguments, *more]))


def everything_else(record: Record) -> dict[str, object]:
    of_metrics = ("metrics", "metrics_code", "notes", "caption")
    return {name: value for name, value in asdict(record).items() if name not in of_metrics}


def reference_of(job: Job, prompt: str) -> str:
    return new_record(job, job.baseline_name, job.baseline_method, prompt).key


def test_only_the_new_metric_is_measured_and_added(arguments, monkeypatch):
    before, job = Runner(job_of(arguments)).run(), job_of(arguments, MORE)
    plan = Runner(job).plan()
    assert (plan.to_make, plan.to_measure, plan.lacking) == ((), job.prompts, ("ssim", "caption"))
    assert (plan.finished, Runner(job).num_steps(plan)) == (0, 2)
    monkeypatch.setitem(QUALITY, "psnr", no_video)  # it is known
    told = []
    after = Runner(job).run(progress=told.append)
    assert told == [f"flowcache_fast, measured: {prompt}" for prompt in job.prompts]
    assert [everything_else(record) for record in after] == [everything_else(record) for record in before]
    assert [record.metrics.pop("ssim") > 0.5 for record in after] == [True, True]
    assert [record.metrics for record in after] == [record.metrics for record in before]
    assert all(record.caption or "caption" in record.notes for record in after)
    plan = Runner(job).plan()
    assert (plan.unfinished, plan.lacking, plan.finished) == ((), (), 2)
    assert Runner(job).run(progress=told.append)
    assert len(told) == 2


def test_it_is_what_would_have_been_measured_at_once(arguments, tmp_path, monkeypatch):
    later = Runner(job_of(arguments, MORE)).run()
    monkeypatch.undo()
    at_once = Runner(job_of(arguments, MORE, f"output_dir={tmp_path / 'again'}")).run()
    assert [(r.metrics, r.notes, r.caption) for r in later] == [(r.metrics, r.notes, r.caption) for r in at_once]


def test_a_baseline_has_no_quality_to_measure_but_its_caption(arguments):
    job = job_of(arguments, "method=vanilla", MORE)
    assert Runner(job).plan().lacking == ("caption",)
    assert [record.metrics for record in Runner(job).run()] == [{}, {}]
    assert Runner(job).plan().finished == 2


@pytest.mark.parametrize("where", [(measure, "quality"), (RecordStore, "amend"), (os, "replace")])
def test_a_kill_leaves_the_old_whole_record(where, arguments, monkeypatch):
    before, job = Runner(job_of(arguments)).run(), job_of(arguments, MORE)
    store = store_of(job)

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*where, kill)
        with pytest.raises(KeyboardInterrupt):
            Runner(job).run()
    assert Runner(job).records(job.prompts) == before
    assert not list(store.run_path(before[0].key).glob(".*.partial"))
    assert [set(record.metrics) for record in Runner(job).run()] == [{"psnr", "ssim"}] * 2


def test_a_damaged_file_is_not_called_whole(arguments):
    job = job_of(arguments, MORE)
    store, (record, _) = store_of(job), Runner(job_of(arguments)).run()
    store.preview_path(record.key).write_bytes(b"damage")
    Runner(job).run()
    assert store.damage(store.find(record.key)) == ["video.mp4 is not what was written"]


def test_a_lost_reference_is_told_with_what_to_do_and_the_others_are_measured(arguments, monkeypatch):
    job = job_of(arguments, MORE)
    store, (lost, kept) = store_of(job), job.prompts
    before = Runner(job).records([lost])
    shutil.rmtree(store.run_path(reference_of(job, lost)))
    with pytest.raises(RunFailed, match=r"1 of the videos could not be measured.*force=true makes both again$"):
        Runner(job).run()
    assert Runner(job).records([lost]) == before
    assert Runner(job).records([kept])[0].metrics.keys() == {"psnr", "ssim"}
    monkeypatch.undo()
    (record,) = Runner(replace(job, force=True)).run([lost])
    assert record.metrics == before[0].metrics | {"ssim": record.metrics["ssim"]}


@pytest.mark.parametrize("whose", ["its own", "its reference's"])
def test_a_damaged_file_is_told_with_what_to_do(whose, arguments):
    job = job_of(arguments, MORE)
    (prompt, _), store = job.prompts, store_of(job)
    key = reference_of(job, prompt) if whose == "its reference's" else Runner(job).records([prompt])[0].key
    store.video_path(key).write_bytes(b"damage")
    with pytest.raises(RunFailed, match=r"video\.mkv.*; force=true makes the video again$"):
        Runner(job).run()


def test_several_measure_nothing_twice(arguments, monkeypatch):
    job, calls = job_of(arguments, "metrics=[psnr,ssim]"), []

    def counted(frames, reference, device):
        calls.append(device)
        return 0.5

    monkeypatch.setitem(QUALITY, "ssim", counted)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda runner: runner.run(), [Runner(job), Runner(job)]))
    assert calls == ["cpu", "cpu"]


def test_what_another_is_at_is_left_alone(arguments):
    job = job_of(arguments, MORE)
    record, _ = Runner(job).records(job.prompts)
    with store_of(job).claim(record.key, wait=False):
        assert Runner(job).drain(job.prompts).busy == (record.prompt,)
    assert Runner(job).plan().to_measure == (record.prompt,)


def test_an_unavailable_metric_is_tried_again_once_it_can_be_had(arguments, monkeypatch):
    job = job_of(arguments, "metrics=[psnr,lpips_vgg]")

    def unavailable(*args, **kwargs):
        raise MetricUnavailable("no weights")

    monkeypatch.setitem(QUALITY, "lpips_vgg", unavailable)
    (record, _) = Runner(job).run()
    assert (record.metrics["lpips_vgg"], record.notes) == (None, {"lpips_vgg": "no weights"})
    assert Runner(job).plan().finished == 2
    monkeypatch.setitem(QUALITY, "lpips_vgg", lambda *args, **kwargs: 0.25)
    assert Runner(job).plan().lacking == ("lpips_vgg",)
    (record, _) = Runner(job).run()
    assert (record.metrics["lpips_vgg"], record.notes) == (0.25, {})


def test_random_weights_still_have_no_quality(arguments, monkeypatch):
    monkeypatch.undo()
    random = [*arguments, "weights=random", "method=every_k", "num_prompts=1"]
    Runner(job_of(random)).run()
    assert Runner(job_of(random, MORE)).plan().unfinished == ()


def test_a_metric_of_changed_code_is_measured_again_and_no_video_is_made(arguments, monkeypatch):
    """The others stay; until then a table says why there is none, and shows no figure of older code."""
    more = job_of(arguments, "metrics=[psnr,ssim]")
    (before, _) = Runner(more).run()
    monkeypatch.setattr("experiments.records.metrics.code_hash", lambda modules: of_today[modules[0]])
    of_today = {"eval.psnr": before.metrics_code["psnr"], "eval.ssim": "another"}
    assert Runner(more).plan().lacking == ("ssim",)
    frame = collect(more)
    ours = frame[frame["method"] == "flowcache_fast"]
    assert ours["ssim"].isna().all()
    assert ours["psnr"].notna().all()
    assert set(ours["ssim_reason"]) == {
        "measured by other code than today's; the run.py command that made the video measures it again"
    }
    assert [record.metrics["ssim"] for record in finished(more)] == [None, None]
    monkeypatch.setitem(QUALITY, "ssim", lambda frames, reference, device: 0.25)
    (after, _) = Runner(more).run()
    assert after.metrics == before.metrics | {"ssim": 0.25}
    assert after.metrics_code == before.metrics_code | {"ssim": "another"}
    assert everything_else(after) == everything_else(before)
    assert (Runner(more).plan().unfinished, after.notes) == ((), {})


def test_a_break_of_motion_is_measured_later_of_a_baseline_too(arguments):
    later = job_of(arguments, "method=vanilla", "metrics=[flow_jump]")
    assert Runner(later).plan().lacking == ("flow_jump",)
    Runner(later).run()
    assert Runner(later).plan().lacking == ()
    (record, *_) = finished(later)
    assert record.metrics["flow_jump"] is None  # of one chunk; and that it was measured is known
    assert set(record.metrics_code) == {"flow_jump"}


def test_a_captions_code_counts_too(arguments, monkeypatch):
    job = job_of(arguments, "method=vanilla", "metrics=[caption]")
    (record, _) = Runner(job).run()
    assert set(record.metrics_code) == {"caption"}  # a baseline has no other
    monkeypatch.setattr("experiments.records.metrics.code_hash", lambda modules: "another")
    assert Runner(job).plan().lacking == ("caption",)
    assert [each.caption for each in finished(job)] == [None, None]
    Runner(job).run()
    assert Runner(job).plan().unfinished == ()
    assert [each.caption for each in finished(job)] == [record.caption for record in Runner(job).records(job.prompts)]


def test_other_codes_videos_are_compared_with_its_own_references(arguments, monkeypatch):
    job = job_of(arguments, "metrics=[psnr,ssim]")
    store, old_reference = store_of(job), reference_of(job, job.prompts[0])
    old_code = new_record(job, job.method_name, job.method, job.prompts[0]).code
    monkeypatch.setattr("experiments.records.identity.code_hash", lambda modules: "feedfacefeedface")
    new_reference = reference_of(job, job.prompts[0])
    shutil.copytree(store.run_path(old_reference), store.run_path(new_reference))
    store.save(replace(store.read(old_reference), key=new_reference, code="feedfacefeedface"))
    read = []
    lossless = video_metrics.read_lossless
    monkeypatch.setattr(video_metrics, "read_lossless", lambda path: read.append(path.parent.name) or lossless(path))
    (record,) = Runner(replace(job, any_code=True)).run(job.prompts[:1])
    assert (record.code, set(record.metrics)) == (old_code, {"psnr", "ssim"})
    assert read == [record.key, old_reference]


def test_the_plan_and_the_run_tell_what_was_lacking(arguments):
    console = Console(record=True, width=200)
    records = run_job(compose_config([*arguments, "metrics=[psnr,ssim]", "wandb.mode=disabled"]), console)
    printed = console.export_text()
    assert "0 finished already, 0 videos to make" in printed
    assert "2 videos are there but lack ssim: measured from their lossless files" in printed
    assert [set(record.metrics) for record in records] == [{"psnr", "ssim"}] * 2


def test_a_sweep_measures_what_is_lacking_here_or_in_tasks(arguments, monkeypatch, capsys):
    jobs = [job_of(arguments, method, "metrics=[psnr,ssim]") for method in ("method=vanilla", "method=flowcache_fast")]
    told = "0 videos to make, 2 finished ones without a metric, measured from the lossless files\n"
    started = []
    monkeypatch.setattr(Launcher, "run", lambda self, task: started.append(task))
    sweep.share_out(Launcher("basic", (), 2), jobs, partial(list, jobs))
    assert told in capsys.readouterr().out
    started[0]()  # a task's share, all of it
    assert capsys.readouterr().out.count("measured: ") == 2
    sweep.share_out(Launcher("basic", (), 2), jobs, partial(list, jobs))
    assert (capsys.readouterr().out, len(started)) == ("0 videos to make\n", 1)
    more = [replace(job, metrics=("psnr", "psnr_frame")) for job in jobs]
    before = sweep.finished_at(more)
    sweep.share_out(None, more, partial(list, more))
    assert "2 of 2" in capsys.readouterr().out
    assert "flowcache_fast: 0 made, 0 failed, 2 finished in all" in "\n".join(sweep.told_by_setting(more, before))
