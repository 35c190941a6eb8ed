"""The plan before a start: its compute is the dry run's, its probe is of the fullest rows, and it is printed first."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from eval.peak_memory import PeakBytes
from experiments.job.cli import compose_config
from experiments.job.groups import config_files
from experiments.job.job import make_job
from experiments.run import sweep
from experiments.run.dry_run import count
from experiments.run.main_job import run_job
from experiments.run.plan import (
    FusedAttention,
    Probe,
    activation_bytes,
    count_work,
    decode_bytes,
    print_plan,
    probe,
    probed_rows,
)
from flowcache.models.magi import Magi
from flowcache.models.magi.flops import FlopCounter
from flowcache.schedule import diffusion_forcing_schedule, staged_schedule, timesteps
from tests.experiments.conftest import SMALL
from tests.models.skyreels_pipeline import write_checkpoint


@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        (staged_schedule(10, timesteps(64), 4), 48),
        (staged_schedule(2, timesteps(8), 4), 2),
        (staged_schedule(1, timesteps(8), 4), 0),
        (diffusion_forcing_schedule(9, list(range(999, 0, -20)), 5, 5, 1, 0), 20),
    ],
)
def test_the_probe_is_of_the_first_fullest_rows_and_computes_little_before(schedule, start):
    first, decisions = probed_rows(schedule)
    assert first == start
    assert len(decisions) == start + 3 + (start == 0)
    for row, computed in zip(schedule.rows, decisions, strict=False):
        assert computed == (row.chunks if row.index >= start or any(s.step == 0 for s in row.steps) else ())
    assert sum(map(bool, decisions[:start])) < max(1, len(schedule.rows[start].steps))


def test_a_count_is_that_of_the_dry_run_and_says_when_it_is_the_most():
    config = compose_config([*SMALL, "method=flowcache_fast"])
    work = count_work(make_job(config), config)
    vanilla = compose_config([*SMALL, "method=vanilla"])
    expected = count(vanilla, make_job(vanilla).method).trace
    assert (work.num_chunks, work.num_rows, work.num_chunk_steps) == (2, 10, 16)
    assert (work.flops, work.vanilla_flops) == (expected.flops, expected.flops)
    assert work.at_most
    assert work.kv_bytes_by_use == {"entries": expected.kv_bytes_allocated}
    assert not count_work(make_job(vanilla), vanilla).at_most


def test_activations_are_those_that_a_run_holds():
    """Counted on shapes, for one layer and without scores; on the CPU the same forward holds as much, to a quarter."""
    config = compose_config([*SMALL, "method=vanilla"])
    job = make_job(config)
    model = job.load_model()
    peaks = []
    for made in (Magi.on_meta(checkpoint=job.checkpoint), model):
        generation = made.generation(job.prompts[0], 48, job.method, 0, num_steps=8, height=64, width=64)
        peaks.append(activation_bytes(generation, job))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.25)


@pytest.mark.parametrize("family", ["magi", "skyreels"])
def test_decoding_takes_what_its_shapes_say(family, tmp_path):
    """On the CPU one chunk's decoding holds as much, to a quarter; no weight is copied for the count."""
    overrides = ["model=magi"] if family == "magi" else ["model=skyreels", f"checkpoint={write_checkpoint(tmp_path)}"]
    job = make_job(compose_config([*overrides, "method=vanilla"]))
    model = job.load_model()
    size = (job.generation_options["height"], job.generation_options["width"])
    with torch.inference_mode():
        frames = model.decoder_on_meta(*size)()
    assert frames.is_meta
    assert (frames.dtype, frames.shape[1:]) == (torch.uint8, (*size, 3))
    generation = model.generation("any", model.frames_of(1), job.method, 0, num_steps=8, height=size[0], width=size[1])
    latent = generation.latents[0, :, : job.load_model().chunk_frames // 4]
    with torch.inference_mode(), PeakBytes() as memory:
        made = generation.decode(0, latent)
    assert made.shape == frames.shape
    assert decode_bytes(model, job) == pytest.approx(memory.peak, rel=0.25)


@pytest.mark.parametrize(("budget", "saves"), [("null", True), ("1 chunk", False)])
def test_a_budget_that_saves_nothing_is_told(budget, saves, tmp_path):
    """Of a video all of whose chunks are active, which a budget cannot touch."""
    config = compose_config([*SMALL, "method=vanilla", f"kv.budget={budget}", "setting.num_frames=48"])
    job, console = make_job(config), Console(file=io.StringIO(), width=200)
    print_plan(job, config, job.load_model(), 1, 0, console)
    said = console.file.getvalue()
    assert ("saves no memory here" in said) == (not saves)
    assert "decoding about" in said


def test_fused_attention_makes_its_output_and_nothing_else():
    query, key = torch.empty(1, 2, 512, 8, device="meta"), torch.empty(1, 2, 4096, 8, device="meta")
    with FusedAttention(), PeakBytes() as memory:
        output = F.scaled_dot_product_attention(query, key, key)
    assert output.shape == query.shape
    assert memory.peak == output.nbytes


def test_the_probe_times_what_it_counts(small_job):
    job = small_job("method=vanilla", "num_prompts=1")
    model = job.load_model()
    probed = probe(job, model)
    tokens = 6 * 4 * 4
    caption = int(model.text_encoder(job.prompts[0])[1].sum()) + 2
    counter = FlopCounter(model.config.dit, tokens)
    rows = 3 * sum(counter.chunk("denoise", chunk, (chunk + 1) * tokens, caption).flops for chunk in (0, 1))
    assert rows <= probed.flops < 1.5 * rows  # near-clean copies come on top
    assert min(probed.text_s, probed.rows_s, probed.decode_s) > 0
    assert probed.num_rows == 3


def test_an_estimate_scales_rows_and_adds_text_and_decoding():
    assert Probe(text_s=2.0, rows_s=3.0, num_rows=3, flops=100, decode_s=0.5).video_s(1000, 4) == 2 + 30 + 2


def test_skyreels_plans_in_both_attentions(tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    overrides = ["model=skyreels", f"checkpoint={checkpoint}", "prompts=a red circle", "setting.num_frames=37"]
    overrides += ["setting.num_steps=3", "setting.height=32", "setting.width=32", "workers=1", "threads=1"]
    for method in ("vanilla", "vanilla_kv"):
        config = compose_config([*overrides, f"method={method}"])
        job = make_job(config)
        work, probed = count_work(job, config), probe(job, job.load_model())
        assert work.num_chunks == 5
        assert 0 < probed.flops < work.flops
        assert work.activation_bytes > 0


FULL_SIZE = ["setting.embedded=false", "checkpoint=experiments/embedded/magi"]  # as far as a setting can say


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [([], False), (["plan=false"], False), (FULL_SIZE, True), ([*FULL_SIZE, "plan=false"], False)],
)
def test_the_plan_of_full_size_videos_stands_before_them(tmp_path, monkeypatch, overrides, shown):
    console = Console(file=io.StringIO(), width=200)
    config = compose_config([*SMALL, "method=vanilla", *overrides, f"output_dir={tmp_path}", "wandb.mode=disabled"])
    printed = SimpleNamespace(before="")

    def no_videos(*args):
        printed.before = console.file.getvalue()
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.run.main_job.run_jobs", no_videos)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, console)
    assert ("2 chunks in 10 rows, 16 chunk steps" in printed.before) == shown
    assert ("weights" in printed.before and "a reference" in printed.before) == shown


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_plan_true_tells_the_plan_and_makes_nothing(tmp_path, monkeypatch, num_prompts):
    console = Console(file=io.StringIO(), width=200)
    common = [*SMALL, "method=every_k", "reuse.warmup_steps=1", f"num_prompts={num_prompts}", f"output_dir={tmp_path}"]
    config = compose_config([*common, "plan=true"])
    for place in ("run_jobs", "track", "print_summary"):
        monkeypatch.setattr(f"experiments.run.main_job.{place}", lambda *args, **kwargs: pytest.fail("done"))
    assert run_job(config, console) == []
    printed = console.file.getvalue()
    video = "1 video" if num_prompts == 1 else "2 videos"
    reference = "1 reference" if num_prompts == 1 else "2 references"
    assert f"0 finished already, {video} to make, {reference} to make first" in printed
    assert "1 worker, 1 thread each" in printed
    flops = count(config, make_job(config).method).trace.flops
    assert f"2 chunks in 10 rows, 16 chunk steps; {flops / 1e9:.4g} GFLOPs (vanilla " in printed
    assert "estimated" in printed
    assert "plan=true: nothing was made; the same command without it does the work" in printed
    assert list(tmp_path.iterdir()) == []


def test_plan_true_of_a_finished_job_says_so_and_loads_nothing(tmp_path, monkeypatch):
    common = [*SMALL, "method=vanilla", "num_prompts=1", "setting.num_frames=24", f"output_dir={tmp_path}"]
    common += ["wandb.mode=disabled"]
    run_job(compose_config(common), Console(file=io.StringIO()))
    monkeypatch.setattr("experiments.job.job.Job.load_model", lambda job: pytest.fail("loaded"))
    console = Console(file=io.StringIO(), width=200)
    assert run_job(compose_config([*common, "plan=true"]), console) == []
    assert "1 finished already, 0 videos to make" in console.file.getvalue()


def test_plan_true_of_a_sweep_tells_its_estimate_and_makes_nothing(tmp_path, monkeypatch, capsys):
    for place in ("run_jobs", "track"):
        monkeypatch.setattr(f"experiments.run.sweep.{place}", lambda *args, **kwargs: pytest.fail("done"))
    arguments = [*SMALL, "num_prompts=1", f"output_dir={tmp_path}", "plan=true"]
    assert sweep.main(arguments) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    # Without those that are vanilla on MAGI-1, and those of few-step models.
    made = len(config_files("method")) - 4
    assert first == f"{made} settings x 1 prompt, {made} videos to make"
    assert second.startswith("estimate: 1 vanilla of ")
    assert third == "plan=true: nothing was made; the same command without it does the work"
    assert list(tmp_path.iterdir()) == []
