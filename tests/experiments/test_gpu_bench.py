"""The GPU benchmark's parts, run on a CPU at small sizes, and the command that keeps and adds up what they measure."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

from experiments.benchmarks import bench
from experiments.benchmarks.gpu.cases import PAPER, TINY, Case, Work, all_cases
from experiments.benchmarks.gpu.command import measure
from experiments.benchmarks.gpu.compression import compression
from experiments.benchmarks.gpu.diffusers_pipeline import STEPS, beside_diffusers
from experiments.benchmarks.gpu.forward import forwards, kernels
from experiments.benchmarks.gpu.guidance import _check_same, branches
from experiments.benchmarks.gpu.micro import TINY as TINY_MICRO
from experiments.benchmarks.gpu.micro import micro
from experiments.benchmarks.gpu.subject import Followed, Subject, inputs
from experiments.benchmarks.gpu.summary import SUMMARY, write_summary
from experiments.benchmarks.gpu.videos import long_video, sampled_video, video, warm_up
from experiments.job.device import GPU_KERNELS
from experiments.job.errors import CasesFailed
from experiments.job.method import make_method
from experiments.run.dry_run import _model
from flowcache.method import VANILLA
from flowcache.sampler import sample
from tests.models.skyreels_pipeline import write_checkpoint

ON_CPU = ("device=cpu", "threads=1")
MAGI = Subject(("model=magi", "setting.num_frames=96", "setting.num_steps=8", *ON_CPU))
LONGER = Subject((*MAGI.overrides, "setting.num_frames=192"))


@pytest.fixture(scope="module")
def skyreels(tmp_path_factory) -> Subject:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("skyreels"))
    sizes = ("setting.num_frames=37", "setting.num_steps=8", "setting.height=32", "setting.width=32")
    return Subject(("model=skyreels", f"checkpoint={checkpoint}", *sizes, *ON_CPU))


@pytest.fixture(params=["magi", "skyreels"])
def subject(request) -> Subject:
    return MAGI if request.param == "magi" else request.getfixturevalue("skyreels")


def test_what_the_device_can_do_is_told_in_rates_of_what_ran():
    found = micro("cpu", TINY_MICRO)
    assert found["matmul_tflops"] == pytest.approx(2 * 64**3 / found["matmul_s"]["median"] / 1e12)
    assert found["copy_gb_per_s"] == pytest.approx(2 * 2**16 / found["copy_s"]["median"] / 1e9)
    (product,) = found["products"]
    assert product["tflops_per_s"] == pytest.approx(2 * 64 * 32 * 16 / product["seconds"]["median"] / 1e12)
    whole = [case for case in found["attention"] if case["kernel"] == "auto"]
    assert [case["context"] for case in whole] == [1, 2]
    for case in whole:
        flops = 4 * 24 * 96 * 96 * case["context"] * 128
        assert case["tflops_per_s"] == pytest.approx(flops / case["seconds"]["median"] / 1e12)
        assert min(case["first_call_s"], case["strided_call_s"]) > 0
    assert {case["kernel"] for case in found["attention"] if "refused" in case} == {"cudnn", "efficient"}
    assert found["masked"]["largest_difference"] < 0.02  # bfloat16
    assert 0 < found["vae_tile"]["relative_difference"] < 0.05
    assert min(passed["gb_per_s"] for passed in found["passes"]) > 0


def alone(subject: Subject) -> Subject:
    """One chunk at a time, where a model can: on SkyReels-V2 as in the command's own setting."""
    if "model=magi" in subject.overrides:
        return subject
    options = ("ar_step=8", "base_num_frames=29", "guidance_scale=1")
    return Subject((*subject.overrides, *(f"model.options.{option}" for option in options)))


def test_a_chunks_forward_costs_more_by_every_chunk_that_it_sees(subject):
    cases = forwards(alone(subject), contexts=range(1, 5))["contexts"]
    assert [case["context"] for case in cases] == [1, 2, 3, 4]
    differences = {after["flops"] - before["flops"] for before, after in pairwise(cases)}
    assert len(differences) == 1
    assert differences.pop() > 0
    assert all(
        case["tflops_per_s"] == pytest.approx(case["flops"] / case["seconds"]["median"] / 1e12) for case in cases
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_kernels_are_measured_or_said_to_be_refused():
    found = kernels(MAGI, context=2)
    refused = {name for name, case in found["backends"].items() if "refused" in case}
    assert refused == set(GPU_KERNELS)
    assert found["backends"]["auto"]["flops"] == found["compiled"]["flops"]
    assert found["compile_s"] > 0
    assert MAGI.job().load_model().dit.attention_backend == "auto"


def test_guidance_branches_are_timed_both_ways_over_the_same_tokens(skyreels):
    sizes, transformer = [], skyreels.job().load_model().network.transformer
    hook = transformer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[::2][:2]))
    found = branches(skyreels, caption_tokens=4, runs=2)
    hook.remove()
    # Frames 2 and 6, each way once for the check, once not timed and twice timed.
    assert Counter(sizes) == {(1, 2): 8, (2, 2): 4, (1, 6): 8, (2, 6): 4}
    assert [(case["part"], case["tokens"]) for case in found["cases"]] == [("chunk", 8), ("window", 24)]
    for case in found["cases"]:
        assert case["ratio"] == pytest.approx(case["in_turn_s"]["median"] / case["batched_s"]["median"])
        assert case["relative_difference"] < 1e-5
        assert case["batched_peak_memory_gib"] is None


def test_branches_that_do_not_compute_the_same_are_refused():
    in_turn = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert _check_same(in_turn, in_turn.clone(), 0.05) == 0
    for wrong in (in_turn.flip(0), in_turn[:1].expand_as(in_turn), in_turn * torch.nan):
        with pytest.raises(RuntimeError, match="batched branches differ"):
            _check_same(in_turn, wrong, 0.05)
    same = in_turn[:1].expand_as(in_turn)  # one caption twice
    with pytest.raises(RuntimeError, match=r"and the branches by 0\.0e"):
        _check_same(same, same, 0.05)


def test_methods_that_decide_by_distances_measure_them_and_follow_the_published_compute(subject):
    policy, own = subject.method("flowcache_fast").reuse, make_method(subject.config("method=flowcache_fast")).reuse
    assert isinstance(policy, Followed)
    assert policy.distance == own.distance is not None
    vanilla = video(subject, "vanilla")
    fast = video(subject, "flowcache_fast")
    assert fast["flops"] < vanilla["flops"]
    assert 0 < fast["chunk_steps_computed"] < vanilla["chunk_steps_computed"] == 1
    assert fast["sections_s"]["policy"] > 0
    assert fast["latency_s"] == fast["chunk_latency_s"][-1] > sum(fast["sections_s"].values()) > 0
    assert (fast["peak_memory_gib"], fast["runs"]) == (None, 1)


@pytest.fixture
def attended(monkeypatch) -> Counter:
    """Attention calls so far, by shapes and by strides of queries and keys."""
    calls, attend = Counter(), torch.nn.functional.scaled_dot_product_attention

    def counting(query, key, *others, **options):
        calls[query.shape, key.shape, query.stride(), key.stride()] += 1
        return attend(query, key, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)  # strides are made alike for cuDNN alone
    return calls


@pytest.mark.parametrize("name", ["vanilla", "vanilla_kv", "flowcache_fast"])
def test_warming_up_meets_all_that_kernels_plan_for_in_a_fraction_of_the_video(subject, name, attended):
    """cuDNN plans by shape and by stride; strides follow from the shapes, whoever else is in the pack."""
    if name == "vanilla_kv" and subject is MAGI:
        pytest.skip("vanilla is cached already")
    job, method = subject.job(), subject.method(name)
    model = job.load_model()
    model.generation(num_frames=job.num_frames, method=method, **inputs(job))  # captions
    attended.clear()
    warm_up(job, model, method)
    ready = set(attended)
    attended.clear()
    for _ in sample(model.generation(num_frames=job.num_frames, method=method, **inputs(job))):
        pass
    assert set(attended) <= ready
    near_clean = subject is MAGI  # its keys are its own, not the cache's
    assert len(attended) == len({call[:2] for call in attended}) + near_clean
    assert len(attended) >= 3


def test_one_layer_runs_alone_and_then_all_do(subject):
    job, ran = subject.job(), Counter()
    model = job.load_model()
    blocks = model.dit.videodit_blocks.layers if subject is MAGI else model.network.transformer.blocks
    norms = [layer.self_attention.q_layernorm if subject is MAGI else layer.attn1.norm_q for layer in blocks]
    hooks = [norm.register_forward_hook(lambda *_, i=i: ran.update([i])) for i, norm in enumerate(norms)]
    for layers, context in ((1, model.one_layer()), (len(blocks), nullcontext())):
        ran.clear()
        with context:
            next(sample(model.generation(num_frames=job.num_frames, method=VANILLA, **inputs(job))))
        assert set(ran) == set(range(layers))
    for hook in hooks:
        hook.remove()


def test_a_compressed_cache_is_smaller_and_its_time_told_apart():
    whole, compressed = video(LONGER, "flowcache_fast"), video(LONGER, "flowcache_fast", "kv.budget=1 chunk")
    assert compressed["kv_bytes_allocated"] < whole["kv_bytes_allocated"]
    assert compressed["chunk_steps_computed"] == whole["chunk_steps_computed"]
    assert compressed["sections_s"]["compression"] > 0
    assert "compression" not in whole["sections_s"]


@pytest.mark.parametrize("method", ["vanilla", "flowcache_fast"])
def test_an_estimate_from_all_rows_is_what_they_took(method):
    everything = sampled_video(MAGI, method, every=1)
    assert everything["rows_run"] == everything["rows"] == 14
    assert everything["flops_run"] <= everything["flops"]  # captions run before the rows
    assert everything["flops_run"] == pytest.approx(everything["flops"], rel=0.1)
    some = sampled_video(MAGI, method, every=5)
    assert some["rows_run"] < some["rows"]
    assert some["flops"] == everything["flops"]
    assert some["rows_s_estimated"] == pytest.approx(some["run_s"] * some["flops"] / some["flops_run"])


def test_a_long_video_is_told_chunk_by_chunk():
    found = long_video(LONGER)
    assert len(found["chunk_s"]) == len(found["kv_bytes_peak_so_far"]) == 8
    assert min(found["chunk_s"]) > 0
    assert max(found["kv_bytes_peak_so_far"]) <= found["kv_bytes_allocated"]
    job, method = LONGER.job(), LONGER.method("vanilla", "kv.budget=1 chunk")
    longest = job.load_model().generation(num_frames=480, method=method, **inputs(job))
    assert found["kv_bytes_allocated"] == longest.kv_bytes_allocated
    assert found["peak_memory_gib"] == []


def test_compression_is_compared_case_by_case():
    found = compression("cpu", lengths=(240,), runs=2)
    assert [(case["keys"], case["queries"]) for case in found["cases"]] == [
        (240, unit) for unit in ("token", "frame", "chunk")
    ]
    assert all(case["same"] == 1 and len(case["seconds"][1]) == 2 for case in found["cases"])


def test_diffusers_pipeline_runs_its_rows_on_the_same_weights(skyreels):
    calls = []
    transformer = skyreels.job().load_model().network.transformer
    hook = transformer.register_forward_hook(lambda *_: calls.append(True))
    found = beside_diffusers(skyreels)
    hook.remove()
    assert len(calls) == 2 * STEPS  # theirs, in both guidance branches; ours never calls it whole
    assert found["frames"] == 21
    assert min(found["ours_row_s"]["low"], found["diffusers_row_s"]["low"]) > 0


# The command.


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["gpu"]) == 2
    assert "bench gpu needs a CUDA device and torch" in capsys.readouterr().err
    assert bench.main(["gpu", "cases=a,z_magi"]) == 2
    assert "cases=a,z_magi: 'z_magi' is no case and no part" in capsys.readouterr().err
    assert bench.main(["gpu", "deadline_s=soon"]) == 2
    assert "deadline_s=soon must be a whole number" in capsys.readouterr().err
    assert bench.main(["gpu", "device=cpu", "publish=true"]) == 2
    assert "device=cpu only rehearses the command" in capsys.readouterr().err
    assert bench.main(["gpu", "compil=true"]) == 2
    assert "did you mean compile" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [PAPER, TINY], ids=["paper", "tiny"])
def test_every_part_has_cases_whose_settings_the_models_accept(sizes):
    cases = list(all_cases("cpu", ["compile=true"], sizes, official="FlowCache"))
    assert sorted({case.part for case in cases}) == list("abcdefg")
    assert len({case.name for case in cases}) == len(cases)
    assert cases[0].name == "a_micro"
    checked = {case.work.subject for case in cases} - {None}
    for given in checked:
        job, config = given.job(), given.config()
        assert job.compile
        if sizes is PAPER:
            assert job.random_weights == {k: v for k, v in config.model.on_meta.items() if k != "_target_"}
        model = _model(config.model.on_meta, job.checkpoint)
        generation = model.generation(num_frames=job.num_frames, method=job.method, **inputs(job))
        assert generation.schedule.num_chunks * model.chunk_frames >= job.num_frames
        assert generation.schedule.window_size >= sizes.kernel_context or model.chunk_frames == 24
    assert len(checked) == 6


def figures(measured: list[str], name: str, fail: bool = False) -> Case:
    def take() -> dict[str, float]:
        measured.append(name)
        if fail:
            raise RuntimeError("the kernel is gone")
        return {"matmul_tflops": 800.0, "matmul_size": 64, "copy_bytes": 2**30, "copy_gb_per_s": 3000.0}

    return Case(name, take, Work())


def test_what_is_measured_is_kept_and_a_failure_costs_nothing_else(tmp_path, capsys, monkeypatch):
    measured: list[str] = []
    cases = [figures(measured, "a_micro"), figures(measured, "b_bad", fail=True), figures(measured, "c_last")]
    with pytest.raises(CasesFailed, match="b_bad could not be measured"):
        measure(cases, "cpu", ["compile=true"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_micro.json", "c_last.json", SUMMARY]
    assert "RuntimeError: the kernel is gone" in capsys.readouterr().out
    document = json.loads((tmp_path / "a_micro.json").read_text(encoding="utf-8"))
    assert document["overrides"] == ["compile=true"]
    assert {"cpu", "packages", "revision"} <= document["environment"].keys()

    again = [cases[0], figures(measured, "b_bad"), cases[2]]
    measure(again, "cpu", ["compile=true"], tmp_path)
    assert measured == ["a_micro", "b_bad", "c_last", "b_bad"]
    measure(cases[:1], "cpu", [], tmp_path)  # another way of running it
    assert measured[4:] == ["a_micro"]
    monkeypatch.setattr("experiments.benchmarks.gpu.command.library_hash", lambda: "another code")
    measure(cases[:1], "cpu", [], tmp_path)
    assert measured[5:] == ["a_micro"]


def write(folder, name: str, **figures) -> None:
    environment = {"cpu": "a CPU", "gpu": "H100", "driver": "1", "cuda": "13", "packages": {"torch": "2"}}
    document = {"overrides": [], "environment": environment | {"revision": "abc"}, "figures": figures}
    (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def a_video(method: str, latency_s: float, flops: float, **sections_s: float) -> dict:
    sizes = {"num_frames": 97, "kv_bytes_allocated": 2**30, "peak_memory_gib": 20.0}
    sizes["chunk_latency_s"] = [5.0, latency_s]
    return {"method": method, "latency_s": latency_s, "flops": flops, "sections_s": sections_s, **sizes}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.02, "high": median + 0.02}


def test_the_summary_holds_figures_against_targets(tmp_path):
    write(tmp_path, "a_micro", matmul_tflops=800.0, matmul_size=8192, copy_bytes=2**32, copy_gb_per_s=3000.0)
    contexts = [
        {"context": c, "flops": 1, "tflops_per_s": rate, "seconds": {"median": 0.5, "low": 0.5, "high": 0.5}}
        for c, rate in ((1, 400.0), (2, 500.0))
    ]
    write(tmp_path, "b_magi_forward", contexts=contexts, runs=5)
    cases = [
        {"part": part, "tokens": 10200, "in_turn_s": spread(1.0), "batched_s": spread(batched), "ratio": 1 / batched}
        | {"in_turn_peak_memory_gib": 10.04, "batched_peak_memory_gib": None}
        for part, batched in (("chunk", 0.8), ("window", 1.25), ("window again", 1.01))
    ]
    write(tmp_path, "b_skyreels_branches", cases=cases, runs=5)
    write(tmp_path, "c_skyreels_vanilla", **a_video("vanilla", 110.0, 100e15, transformer=100.0, vae=10.0))
    fast = a_video("flowcache_fast", 35.0, 25e15, transformer=24.0, policy=1.0, vae=10.0)
    write(tmp_path, "c_skyreels_flowcache_fast", **fast)
    text = write_summary(tmp_path)
    assert (tmp_path / SUMMARY).read_text(encoding="utf-8") == text
    assert "H100, driver 1, CUDA 13, torch 2, revision abc" in text
    assert "| magi: a chunk's forward, share of the matmul ceiling, least | >= 0.6 | 0.500 | **missed** |" in text
    assert "| skyreels: a chunk's forward, share of the matmul ceiling, least | >= 0.6 | - | not measured |" in text
    assert "| skyreels: efficiency of flowcache_fast | >= 0.95 | 0.786 | **missed** |" in text
    assert "| policy and compression, share of the time, most | < 0.02 | 0.029 | **missed** |" in text
    assert "| chunk | 10200 | 1000.00 | 800.00 | 1.250 | 10.0 | - | batched faster by 25.0% |" in text
    assert "| window | 10200 | 1000.00 | 1250.00 | 0.800 | 10.0 | - | not: in turn faster by 25.0% |" in text
    assert "| window again | 10200 | 1000.00 | 1010.00 | 0.990 | 10.0 | - | not: spreads overlap |" in text
    # 110 / 35 = 3.14 at 4 times fewer FLOPs; without the VAE 100 / 25 = 4.
    assert "| skyreels | flowcache_fast | 35.0 | 5.0 | 2.77 | 3.14 | 4.00 | 0.79 | 25.0 | 1.00 |" in text
    assert "nan" not in text
