"""Causal Wan from the command line, on a small untrained stand-in: what runs, what is refused, what a run is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.experiment import jobs_of
from experiments.job.groups import CONF, config_files
from experiments.job.job import Job, make_job
from experiments.job.paths import ROOT
from experiments.records import RecordStore, new_record, weights_id
from experiments.run.dry_run import count
from experiments.run.runner import Runner
from flowcache.calibration import Calibration
from flowcache.checkpoints import loaded_files
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan import Sampling
from flowcache.sampler import sample
from tests.experiments.embedded import stand_in_of_wan
from tests.models.wan_files import averaged, write_original, write_published
from tests.models.wan_goldens import tensors

SMALL = ["model=wan", "setting.num_frames=21", "num_prompts=1", "metrics=[psnr,ssim]", "workers=1", "threads=1"]
SMALL += ["latency_pairs=0", "wandb.mode=disabled", "prompts=a red circle moves left"]
EVERY_METHOD = {"main_table", "vbench_full"}  # the experiments of all methods, each of which is run here by itself
PLACED = ("flowcast_fast", "flowcast_slow", "shortest_path")
WITHOUT_CALIBRATION = {"magcache": ["reuse.table=null"]} | {
    name: ["reuse.plan=null"] for name in PLACED
}  # of other weights
LORA_ALPHA = "model.loading.lora_alpha=4"


def job_of(*overrides: str, checkpoint: Path | None = None) -> Job:
    checkpoint = stand_in_of_wan() if checkpoint is None else checkpoint
    return make_job(compose_config([*SMALL, f"checkpoint={checkpoint}", *overrides]))


@pytest.fixture
def teacher(tmp_path) -> Path:
    """The stand-in with the teacher's settings."""
    folder = shutil.copytree(stand_in_of_wan(), tmp_path / "teacher")
    settings = json.loads((folder / "sampling.json").read_text(encoding="utf-8"))
    own = settings | {"solver": "unipc", "num_steps": 8, "guidance_scale": 2.0}
    (folder / "sampling.json").write_text(json.dumps(own), encoding="utf-8")
    return folder


@pytest.fixture
def published(tmp_path) -> Path:
    """Self-Forcing as downloaded, with both sets of weights."""
    path = write_original(tmp_path)
    return write_published(path, generator_ema=averaged(), generator=averaged(0.01))


def test_conf_fits_the_recipe_and_the_model():
    config = compose_config(["model=wan"])
    sampling = json.loads((stand_in_of_wan() / "sampling.json").read_text(encoding="utf-8"))
    assert (config.setting.height, config.setting.width) == (sampling["height"], sampling["width"])
    assert set(config.model.options) <= set(Sampling.__dataclass_fields__)
    missing = set(Sampling.__dataclass_fields__) - set(config.model.options)
    assert missing == {"height", "width", "num_steps", "renew_sink"}  # the setting's, and of prompts that change


def test_without_the_trained_model_it_says_what_to_do(command, monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.job.model.ROOT", tmp_path)
    for more in ([], ["device=meta"], ["weights=random", "method=vanilla"]):
        code, said = command("model=wan", *more)
        assert code == 2
        assert "model=wan has no embedded checkpoint here (experiments/embedded/wan); train it (python -m" in said
        assert "experiments.train_embedded model=wan), or give checkpoint=<directory>" in said


@pytest.mark.parametrize("name", [path.stem for path in config_files("method") if "motioncache" not in path.stem])
def test_every_method_runs_end_to_end(name, tmp_path):
    job = job_of(f"method={name}", f"output_dir={tmp_path}", *WITHOUT_CALIBRATION.get(name, ()))
    (record,) = Runner(job).run()
    trace = record.computed_fraction
    assert record.status == "finished"
    assert 0.5 <= trace <= 1
    assert RecordStore(job.output_dir).video_path(record.key).is_file()
    assert "num_steps" not in record.settings  # they are the checkpoint's
    if name in ("fewer_steps", "every_k", "flowcache_fast", "flowcast_slow"):
        assert trace < 1


@pytest.mark.parametrize(("steps", "computed"), [("[0,1,3]", 0.75), ("[0,3]", 0.5)])
def test_fewer_steps_are_those_that_are_listed(steps, computed, tmp_path):
    (record,) = Runner(job_of("method=fewer_steps", f"reuse.steps={steps}", f"output_dir={tmp_path}")).run()
    assert record.computed_fraction == computed


def test_fewer_steps_cost_what_a_shorter_list_does(tmp_path):
    (held,) = Runner(job_of("method=fewer_steps", "reuse.steps=[0,3]", f"output_dir={tmp_path}")).run()
    (own,) = Runner(job_of("method=vanilla", "model.options.steps=[1000,250]", f"output_dir={tmp_path}")).run()
    assert held.flops_by_kind["denoise"] == own.flops_by_kind["denoise"]
    assert own.settings["steps"] == [1000, 250]


def test_a_multirun_takes_lists_of_steps(command):
    lists = ["method=fewer_steps", "reuse.steps=[0,1,3],[0,3]"]
    given = [*SMALL[:-1], f"checkpoint={stand_in_of_wan()}", "setting=embedded"]
    code, said = command(*given, *lists, "prompts='a red circle'", "-m")
    assert (code, said) == (0, "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["setting.num_steps=8"],
            "num_steps=8 is of solver='unipc', and steps with fresh noise are a list; choose steps",
        ),
        (
            ["method=flowcast_fast", "reuse.plan=null", "forecast.correction=2"],
            "steps with fresh noise forget what they came from",
        ),
        (["kv.budget=1 chunk"], "window_frames=12 does not leave; choose budget null, or window_frames='all' and sink"),
        (["model.options.steps=[500,1000]"], r"steps=\[500, 1000\] must fall from step to step"),
        (["model.options.window_frames=5"], "window_frames=5 cannot hold the sink of 3 latent frames"),
        (["setting.num_frames=80"], "num_frames=80 does not fill whole chunks of 3 latent frames; try num_frames=81"),
        (["method=fewer_steps", "reuse.steps=[0,4]"], r"steps=\[0, 4\] names step 4, but a chunk has 4, from 0 on"),
        (["model.loading.weights=generator"], "holds one set of weights, and weights='generator' is not for it"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(overrides, message):
    job = job_of(*overrides)
    with pytest.raises(BadInput, match=message):
        Runner(job).check(job.prompts[0])


def test_the_teacher_takes_its_own_steps_or_those_that_are_asked_for(teacher, tmp_path):
    plain = job_of("method=flowcast_fast", "reuse.plan=null", f"output_dir={tmp_path}", checkpoint=teacher)
    assert Runner(plain).check("a red circle").schedule.num_steps == 8
    corrected = ["method=flowcast_fast", "reuse.plan=null", "forecast.correction=2", "setting.num_steps=6"]
    assert Runner(job_of(*corrected, checkpoint=teacher)).check("a red circle").schedule.num_steps == 6
    (record,) = Runner(plain).run()
    assert record.computed_fraction < 1


@pytest.mark.parametrize("name", sorted({path.stem for path in config_files("experiment")} - EVERY_METHOD))
def test_the_model_takes_every_job_of_an_experiment(name):
    """Its settings, methods, budgets."""
    jobs, _ = jobs_of(name, [*SMALL[:1], f"checkpoint={stand_in_of_wan()}"])
    for job in jobs:
        parts = (job.method.reuse, job.method.kv.select)
        if not any(
            isinstance(value, Calibration) for part in parts for value in part.options.values()
        ):  # of other weights
            Runner(job).check(job.prompts[0])


# Which files a run is of.


def test_an_adapter_a_base_and_the_choice_of_weights_make_another_run(published, tmp_path):
    for name, change in (("one.pt", 0.0), ("other.pt", 1.0)):
        torch.save({"generator_lora": {key: value + change for key, value in tensors("lora").items()}}, tmp_path / name)
    base = shutil.copytree(tmp_path / "wan_models" / "Wan2.1-T2V-1.3B", tmp_path / "base")
    same = shutil.copytree(base, tmp_path / "same")
    with (base / "Wan2.1_VAE.pth").open("ab") as file:
        file.write(b"\0")
    asked = [
        [],
        [f"model.files.lora={tmp_path / 'one.pt'}"],
        [f"model.files.lora={tmp_path / 'other.pt'}"],
        [f"model.files.lora={tmp_path / 'one.pt'}", LORA_ALPHA],
        [f"model.files.base={base}"],
        ["model.loading.weights=generator"],
    ]
    jobs = [job_of("method=vanilla", *overrides, checkpoint=published) for overrides in asked]
    records = [new_record(job, "vanilla", job.method, "a") for job in jobs]
    assert len({record.key for record in records}) == len({record.weights for record in records}) == len(asked)
    assert [record.settings.get("lora_alpha") for record in records] == [None, None, None, 4, None, None]
    assert records[-1].settings["weights"] == "generator"
    # Wherever the same files lie, it is the same run.
    assert weights_id(job_of(f"model.files.base={same}", checkpoint=published)) == records[0].weights


def test_adapter_and_weights_are_felt_in_the_video(published, tmp_path):
    torch.save({"generator_lora": dict(tensors("lora"))}, tmp_path / "lora.pt")
    small = ["method=vanilla", "setting.height=16", "setting.width=16", "setting.num_frames=9"]
    latents = []
    for more in ([], [f"model.files.lora={tmp_path / 'lora.pt'}", LORA_ALPHA], ["model.loading.weights=generator"]):
        job = job_of(*small, *more, checkpoint=published)
        generation = Runner(job).check("a red circle")
        latents += [latent for _, latent in sample(generation)]
    assert not torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])


def test_files_that_a_family_does_not_take_are_refused(tmp_path):
    magi = ROOT / "experiments" / "embedded" / "magi"
    with pytest.raises(CheckpointError, match="of a family whose checkpoints take no lora; leave it out"):
        loaded_files(magi, lora=tmp_path / "lora.pt")
    with pytest.raises(BadInput, match=r"no adapter at .*lora\.pt; give the path of a file"):
        weights_id(job_of(f"model.files.lora={tmp_path / 'lora.pt'}"))


# Dry runs.


@pytest.mark.parametrize(
    ("release", "charged", "kv_gib"),
    [("self_forcing", 990.5, "5.62"), ("longlive", 869.0, "3.21"), ("rolling_forcing", 1455.0, "5.81")],
)
def test_a_dry_run_at_the_real_size_is_the_hand_count(release, charged, kv_gib, command):
    overrides = ["setting=paper", "method=vanilla", "device=meta", "weights=random"]
    code, said = command("model=wan", *overrides, f"model.on_meta.release={release}")
    assert (code, said) == (0, "")
    told = next(line for line in command.printed.splitlines() if "in the paper's accounting" in line)
    number, unit = told.split("│")[2].split()
    assert float(number) * {"TFLOPs": 1, "PFLOPs": 1000}[unit] == pytest.approx(charged, rel=5e-3)
    assert f"KV cache {kv_gib} GiB" in command.printed
    assert f"size 1.3B, release {release}" in " ".join(command.printed.split())
    assert "reported by the paper" not in command.printed


def test_a_dry_run_of_a_checkpoint_counts_what_runs(tmp_path):
    job = job_of("method=fewer_steps", f"output_dir={tmp_path}")
    (record,) = Runner(job).run()
    config = compose_config([*SMALL, "method=fewer_steps", f"checkpoint={stand_in_of_wan()}", "device=meta"])
    counted = count(config, job.method).trace
    caption = record.flops_by_kind["caption"]  # of the tokens that a tokenizer makes of a prompt
    assert counted.flops_by_kind() | {"caption": caption} == record.flops_by_kind
    assert counted.kv_bytes_allocated == record.kv_bytes_allocated / 2  # bfloat16


def test_tuned_files_are_of_parts_that_there_are():
    reuse = {path.stem for path in config_files("reuse")}
    for path in (CONF / "tuned").glob("wan_*.yaml"):
        setting, name = path.stem.removeprefix("wan_").removeprefix("multistep_").split("_", 1)
        assert setting in ("embedded", "paper")
        assert name in reuse
