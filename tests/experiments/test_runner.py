"""The main job: records, resume, failure, and what a rerun does."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from eval.lpips import _distance as lpips_networks
from eval.lpips import lpips
from eval.video_io import read_lossless
from experiments.job.cli import compose_config
from experiments.job.compose import baseline_method, baselines
from experiments.job.errors import BadInput
from experiments.job.groups import config_files
from experiments.job.job import Job
from experiments.job.metrics import METRICS
from experiments.records import RecordStore, new_record
from experiments.records.collect import collect, job_options
from experiments.run.main_job import run_job
from experiments.run.measure import QUALITY
from experiments.run.runner import Runner
from experiments.show.reuse_curve import Curves, at_equal_compute, reuse_points, reuse_videos
from experiments.show.summary import summarise
from experiments.show.tables import main_table
from flowcache.method import VANILLA, Method
from tests.experiments.conftest import SMALL
from tests.fetched import needs_vgg

CURVES = Curves(option="reuse.warmup_steps", title="warm-up", at=5, compared="flowcache")


@pytest.mark.parametrize("name", [path.stem for path in config_files("method")])
@pytest.mark.parametrize(("model", "num_frames"), [("magi", 48), ("skyreels", 37)])  # loaded once for all methods
def test_every_method_runs_end_to_end(name, model, num_frames, small_job):
    size = [f"setting.num_frames={num_frames}", "setting.height=32", "setting.width=32"]
    job = small_job(f"model={model}", f"method={name}", "num_prompts=1", *size)
    (record,) = Runner(job).run()
    assert record.status == "finished"
    assert record.latency_s > 0
    assert record.flops > 0
    frames = read_lossless(RecordStore(job.output_dir).video_path(record.key))
    assert frames.shape == (num_frames, 32, 32, 3)
    trace = pd.read_parquet(RecordStore(job.output_dir).trace_path(record.key))
    assert len(trace) == 16  # two chunks of eight steps
    assert (trace["action"] == "compute").mean() == record.computed_fraction
    if name != "vanilla":
        assert set(record.metrics) == {"psnr", "ssim"}
        assert record.flops <= record.baseline_flops
        assert record.baseline_latency_s > 0


def test_threshold_0_is_vanilla_to_the_last_pixel(small_job):
    (record, _) = Runner(small_job("reuse.threshold=0")).run()
    assert record.metrics["psnr"] == "inf"
    assert record.flops == record.baseline_flops


def test_a_metric_without_its_weights_is_none_and_the_record_says_why(small_job, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "empty"))
    lpips_networks.cache_clear()
    job = small_job("method=every_k", "metrics=[psnr,lpips,lpips_vgg]", "num_prompts=1", "setting.num_frames=24")
    (record,) = Runner(job).run()
    assert record.status == "finished"
    assert record.metrics["psnr"] > 0
    assert record.metrics["lpips"] > 0
    assert record.metrics["lpips_vgg"] is None
    assert record.notes.keys() == {"lpips_vgg"}
    assert "run `python -m eval.weights lpips`" in record.notes["lpips_vgg"]
    assert collect(job)["psnr"].notna().any()


@needs_vgg
def test_lpips_of_both_nets_in_a_job(small_job):
    small = ("metrics=[lpips,lpips_vgg]", "num_prompts=1", "setting.num_frames=24")
    job, baseline = small_job("method=every_k", *small), small_job("method=vanilla", *small)
    (record,) = Runner(job).run()
    (reference,) = Runner(baseline).records(job.prompts)
    clips = [read_lossless(RecordStore(job.output_dir).video_path(r.key)) for r in (record, reference)]
    assert record.metrics == {"lpips": lpips(*clips), "lpips_vgg": lpips(*clips, net="vgg")}
    assert 0 < record.metrics["lpips"] != record.metrics["lpips_vgg"] > 0


def test_metrics_that_can_run_on_the_jobs_device(small_job, monkeypatch):
    devices = {}

    def recorded(name):
        def measure(frames, reference, **options):
            devices[name] = options.get("device")
            return 0.0

        return measure

    job = small_job("method=flowcache_fast", "num_prompts=1")
    job = replace(job, metrics=tuple(name for name in METRICS if name in QUALITY))
    for name in job.metrics:
        monkeypatch.setitem(QUALITY, name, recorded(name))
    Runner(job).run()
    on_cpu = dict.fromkeys(("psnr", "psnr_frame", "ssim_skimage"))
    assert devices == {**on_cpu, "ssim": "cpu", "lpips": "cpu", "lpips_vgg": "cpu"}


def test_a_job_may_be_compared_with_another_baseline(small_job):
    job = small_job("method=flowcache_fast", "baseline=vanilla_kv", "num_prompts=1", "latency_pairs=1")
    (record,) = Runner(job).run()
    assert record.settings["baseline"] == "vanilla_kv"
    (reference,) = Runner(small_job("method=vanilla_kv", "baseline=vanilla_kv", "num_prompts=1")).records(job.prompts)
    assert (reference.method, reference.flops) == ("vanilla_kv", record.baseline_flops)
    assert reference.metrics == {}
    assert collect(job)["method"].tolist().count("vanilla") == 0


def test_the_baselines_are_the_methods_that_compute_everything():
    assert baselines() == ("vanilla", "vanilla_causal", "vanilla_kv")
    found = [baseline_method(name, "skyreels", "embedded") for name in baselines()]
    assert found == [VANILLA, Method(attention="causal"), Method()]
    with pytest.raises(BadInput, match="baseline=every_k is no method that computes everything; there are vanilla"):
        baseline_method("every_k", "magi", "embedded")


def test_a_rerun_makes_nothing_and_returns_the_same(small_job):
    job = small_job()
    first = Runner(job).run()
    told = []
    assert Runner(job).run(progress=told.append) == first
    assert told == []
    plan = Runner(job).plan()
    assert (plan.to_make, plan.finished) == ((), 2)
    assert Runner(replace(job, force=True)).plan().to_make == job.prompts


def test_two_fresh_runs_give_the_same_video(small_job, tmp_path):
    job = small_job("num_prompts=1")
    other = replace(job, output_dir=tmp_path / "again")
    (a,), (b,) = Runner(job).run(), Runner(other).run()
    assert a.key == b.key
    videos = [read_lossless(RecordStore(j.output_dir).video_path(a.key)) for j in (job, other)]
    assert np.array_equal(*videos)


def test_the_key_tells_everything_apart_that_changes_the_video(small_job):
    job = small_job()

    def key(job):
        return new_record(job, job.method_name, job.method, "a prompt").key

    others = [
        replace(job, seed=4),
        replace(job, num_frames=72),
        replace(job, method=replace(job.method, reuse=replace(job.method.reuse, threshold=0.2))),
        replace(job, method=VANILLA),
        replace(job, generation_options={**job.generation_options, "shift": 1.0}),
    ]
    keys = [key(job), *map(key, others), new_record(job, job.method_name, job.method, "another").key]
    assert len(set(keys)) == len(keys)
    # The name of a method and the folder of the results do not change a video.
    assert key(replace(job, method_name="mine", output_dir=job.output_dir / "elsewhere")) == key(job)


def test_what_a_generation_warns_of_is_kept_and_told_once(small_job, capfd):
    job = small_job()
    asked = ["method=vanilla", "setting.num_steps=12", "workers=2", f"output_dir={job.output_dir}"]
    run_job(compose_config([*SMALL, *asked, "wandb.mode=disabled"]))
    said = capfd.readouterr()
    warned = "these weights were trained for num_steps=64, 32, 16 or 8, and num_steps=12 may show nothing"
    assert [record.remarks[0][: len(warned)] for record in RecordStore(job.output_dir).all()] == [warned] * 2
    assert " ".join(said.out.split()).count(f"2 of 2 videos: {warned}") == 1
    assert "UserWarning" not in said.err


def test_records_are_json_with_units_and_environment(small_job):
    job = small_job("num_prompts=1", "reuse.threshold=0")
    (record,) = Runner(job).run()
    document = json.loads(RecordStore(job.output_dir).record_path(record.key).read_text(encoding="utf-8"))
    assert document["metrics"]["psnr"] == "inf"
    assert document["environment"]["threads"] == 1
    assert document["environment"]["load_average_1min"] >= 0
    assert document["peak_memory_gib"] is None  # of a GPU
    assert document["environment"]["packages"]["torch"].startswith("2.13.0")
    assert {"text", "transformer", "policy", "scheduler", "vae"} <= set(document["sections_s"])


def test_summary_table_and_figure_points_come_from_the_records(small_job):
    for overrides in (["method=vanilla"], [], ["reuse.threshold=0.5"]):
        job = small_job(*overrides, "num_prompts=2")
        records = Runner(job).run()
    summary = summarise(records)
    assert summary["n"] == 2
    assert summary["flops_share"] == pytest.approx(sum(r.flops / r.baseline_flops for r in records) / 2)
    assert summary["speedup_n"] == 2
    ratios = [r.baseline_latency_s / r.latency_s for r in records]
    assert summary["speedup"] == pytest.approx(sum(ratios) / 2)
    assert np.isnan(summary["speedup_low"])  # two pairs are too few
    assert summary["efficiency"] == pytest.approx(
        sum(ratio * r.flops / r.baseline_flops for ratio, r in zip(ratios, records, strict=True)) / 2
    )

    frame = collect(job)
    table = main_table(frame, job)
    assert list(table.index) == ["vanilla", "flowcache_fast"]
    assert list(table["n"]) == [2, 2]  # the row at threshold 0.5 is not the method's own
    videos, _ = reuse_videos(frame, job, [small_job(), job], CURVES)
    points = reuse_points(videos)
    assert len(points) == 2
    assert points["compute_left"].is_monotonic_increasing


def test_families_are_compared_prompt_by_prompt_at_equal_compute(small_job):
    settings = [  # each job, the compute that it leaves, and what it loses in dB
        (small_job(f"reuse.threshold={share}"), share, 0) for share in (0.4, 0.8)
    ] + [(small_job("method=every_k", f"reuse.every={round(10 * share)}"), share, 2) for share in (0.4, 0.8)]

    def video(job: Job, prompt: str, share: float, psnr: float) -> dict[str, object]:
        shown = {"prompt": prompt, "seed": 1, "flops": share, "flops_share": share, "psnr": psnr}
        return {"method": job.method_name, "options": job_options(job), **shown}

    videos = [
        video(job, prompt, share, 40 + 10 * share + easier - loss)
        for prompt, easier in zip("abdefg", (0, 9, 1, 5, 3, 7), strict=True)
        for job, share, loss in settings
    ]
    videos.append(video(settings[0][0], "c", 0.4, 10))  # a prompt that the others lack says nothing
    listed = [job for job, *_ in settings]
    shown, notes = reuse_videos(pd.DataFrame(videos), listed[0], listed, CURVES)
    assert notes == []
    compared = at_equal_compute(shown, CURVES).set_index("compute_left")
    assert list(compared.index) == [0.4, 0.5, 0.6, 0.75]  # 0.3 and 0.9 lie beyond the settings
    for share in compared.index:
        assert compared.loc[share, ["difference_db", "low", "high"]].tolist() == pytest.approx([2, 2, 2])
    assert set(compared["won"]) == set(compared["difference_db_n"]) == {6}


def test_tables_without_records_say_what_to_run(small_job):
    with pytest.raises(BadInput, match=r"python run\.py -m"):
        collect(small_job())


def test_records_of_other_settings_do_not_enter_a_table(small_job):
    Runner(small_job("method=vanilla", "num_prompts=1")).run()
    with pytest.raises(BadInput, match="no finished records"):
        collect(small_job("setting.num_steps=12"))


def test_kernels_are_set_and_records_of_others_told_apart(small_job):
    plain, other = small_job(), small_job("attention_backend=math")
    assert other.load_model().dit.attention_backend == "math"
    assert plain.load_model().dit.attention_backend == "auto"
    assert other.settings == plain.settings | {"attention_backend": "math"}
    assert small_job("compile=true").settings == plain.settings | {"compile": True}
