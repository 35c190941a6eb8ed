"""Configuration: every file composes, every mistake is one clear message before any work."""

import pytest

from experiments.job.cli import check_overrides, compose_config, config_files
from experiments.job.errors import BadInput
from experiments.job.experiment import expand, jobs_of
from experiments.job.job import make_job, make_method
from experiments.records.collect import described
from experiments.show.claims import the_one
from flowcache.kv_score import CompressionConfig
from flowcache.method import MethodConfig

MODELS = ("magi", "skyreels")


@pytest.mark.parametrize("path", config_files("method"), ids=lambda p: p.stem)
def test_every_method_composes_to_its_dataclass(path):
    config = compose_config([f"method={path.stem}"])
    assert config.method.name == path.stem
    method = make_method(config.method)
    assert isinstance(method, MethodConfig)
    # The YAML spells every option out: it is the place where a user reads what can be set.
    assert set(config.method.keys()) == {"name", "_target_", *method.__dataclass_fields__}


@pytest.mark.parametrize(
    ("arguments", "pairs"), [([], 8), (["setting=paper"], 3), (["setting=paper", "latency_pairs=6"], 6)]
)
def test_a_setting_says_how_many_pairs_are_timed(arguments, pairs):
    assert compose_config(arguments).latency_pairs == pairs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("path", config_files("experiment"), ids=lambda p: p.stem)
def test_every_experiment_expands_to_jobs_with_the_baseline_first(path, model):
    jobs, experiment = jobs_of(path.stem, [f"model={model}"])
    assert {job.model_name for job in jobs} == {model}
    assert jobs[0].is_baseline
    assert jobs[0].method_name == experiment["baseline"]
    assert {job.baseline for job in jobs} == {experiment["baseline"]}
    assert len(jobs) >= 3
    assert len({repr(job.method) for job in jobs}) == len(jobs)
    if "figure" in experiment:
        known = {"method", "flops_share", *_options(jobs)}
        assert {experiment["figure"]["x"], *experiment["figure"]["lines"]} <= known
    for claim in experiment.get("claims", []):
        assert the_one(jobs, claim["of"]) != the_one(jobs, claim["against"])


def test_what_an_experiment_says_of_a_model_is_for_that_model():
    methods = {model: {job.method_name for job in jobs_of("main_table", [f"model={model}"])[0]} for model in MODELS}
    assert methods["skyreels"] == {path.stem for path in config_files("method")}
    assert methods["skyreels"] - methods["magi"] == {"vanilla_causal", "vanilla_kv"}  # on MAGI-1 the same as vanilla
    lengths = [{job.num_frames for job in jobs_of("long_video", [f"model={model}"])[0]} for model in MODELS]
    assert lengths == [{1920}, {1777}]
    baselines = {model: jobs_of("ablation_kv_budget", [f"model={model}"])[1]["baseline"] for model in MODELS}
    assert baselines == {"magi": "vanilla", "skyreels": "vanilla_kv"}
    with pytest.raises(BadInput, match="did you mean skyreels"):
        jobs_of("main_table", ["model=skyreel"])


def test_an_experiment_of_every_method_takes_those_that_are_named_and_the_baseline():
    jobs, _ = jobs_of("main_table", ["method=teacache_fast,every_k"])
    assert [job.method_name for job in jobs] == ["vanilla", "teacache_fast", "every_k"]
    jobs, _ = jobs_of("main_table", ["method=vanilla"])
    assert [job.method_name for job in jobs] == ["vanilla"]
    with pytest.raises(BadInput, match="did you mean every_k"):
        jobs_of("main_table", ["method=every_l"])
    with pytest.raises(BadInput, match=r"experiment long_video names the methods .* leave method=every_k out"):
        jobs_of("long_video", ["method=every_k"])


def _options(jobs):
    return set().union(*map(described, jobs))


@pytest.mark.parametrize("model", ["magi", "skyreels"])
def test_the_paper_setting_asks_for_weights_and_nothing_else(model, tmp_path):
    overrides = [f"model={model}", "setting=paper", "method=vanilla"]
    with pytest.raises(BadInput, match="checkpoint=<directory>"):
        make_job(compose_config(overrides))
    job = make_job(compose_config([*overrides, f"checkpoint={tmp_path}"]))
    assert (job.checkpoint, len(job.prompts)) == (tmp_path, 8)
    if model == "magi":  # the paper's chunks see all earlier ones, whatever the checkpoint's configuration says
        ranges = {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
        assert ranges.items() <= job.generation_options.items()


def test_published_thresholds_of_flowcache():
    for name, threshold in (("flowcache_slow", 0.010), ("flowcache_fast", 0.015)):
        method = make_method(compose_config([f"method={name}"]).method)
        assert (method.threshold, method.warmup_steps) == (threshold, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=flowcach_fast"], "did you mean flowcache_fast"),
        (["model=maggi"], "did you mean magi"),
        (["setting=embeded"], "did you mean embedded"),
        (["method.thresold=1"], "did you mean threshold"),
        (["method.kv_budge=1 chunk"], "did you mean kv_budget"),
        (["method.compression.mixlambda=1"], "method.compression has no key 'mixlambda'; did you mean mix_lambda"),
        (["method=every_k", "method.threshold=1"], "method has no key 'threshold'"),
        (["sead=1"], "did you mean seed"),
        (["seed"], "not of the form key=value"),
        (["method=vanilla,flowcache_fast", "method.threshold=1"], "no key 'threshold'"),
    ],
)
def test_misspelt_overrides_name_the_nearest(overrides, message):
    with pytest.raises(BadInput, match=message):
        check_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.threshold=-0.1"], "at least 0"),
        (["method.threshold=nan"], "finite"),
        (["method.warmup_steps=2.5"], "whole number"),
        (["method.reuse=output"], "'velocity' or 'displacement'"),
        (["method.kv_budget=2 blocks"], "write '2 chunks', '4096 tokens' or '64 MiB', or null for no budget"),
        (["method.kv_budget=2"], "kv_budget=2 is not understood"),
        (["method.compression.mix_lambda=2"], "between 0 .redundancy only. and 1"),
        (["threads=0"], "at least 1"),
        (["num_prompts=65"], "choose 1 to 64"),
        (["num_prompts=0"], "choose 1 to 64"),
        (["prompts=missing.txt"], "no prompt file"),
        (["metrics=[psnrr]"], "did you mean psnr"),
        (["device=tpu"], "choose auto, cpu, cuda, or meta"),
        (["device=xla"], "choose auto, cpu, cuda, or meta"),
        (["device=meta"], "device=meta is the dry run of run.py alone"),
        (["replay=trace.parquet"], "replay=.*trace.parquet is not a trace of a run"),
        (["weights=randm"], "did you mean random"),
        (["weights=random"], "decides by embedded_latent distances, which random weights make meaningless; give the"),
        (["setting.num_frames=-3"], "whole number"),
    ],
)
def test_bad_values_are_refused_before_any_work(overrides, message):
    with pytest.raises(BadInput, match=message):
        make_job(compose_config(overrides))


def test_a_models_own_options_need_not_be_whole_numbers():
    given = {"guidance_scale": 5.5, "shift": 3.0, "corrector": "published", "ar_step": 4}
    overrides = [f"model.options.{key}={value}" for key, value in given.items()]
    job = make_job(compose_config(["model=skyreels", "prompts=a cat", *overrides]))
    assert given.items() <= job.generation_options.items()


def test_compression_is_off_and_set_by_a_budget_and_its_own_options():
    method = make_method(compose_config(["method=flowcache_fast"]).method)
    assert (method.kv_budget, method.compression) == (None, CompressionConfig())
    overrides = ["method=every_k", "method.kv_budget=2 chunks", "method.compression.selection=frame"]
    check_overrides(overrides)
    method = make_method(compose_config(overrides).method)
    assert (method.kv_budget, method.compression) == ("2 chunks", CompressionConfig(selection="frame"))


def test_prompts_from_list_text_and_file(tmp_path):
    assert make_job(compose_config(["prompts=[a,b,c]"])).prompts == ("a", "b", "c")
    assert make_job(compose_config(["prompts=a red circle"])).prompts == ("a red circle",)
    (tmp_path / "mine.txt").write_text("one\n\n two \n")
    assert make_job(compose_config([f"prompts={tmp_path / 'mine.txt'}"])).prompts == ("one", "two")
    assert len(make_job(compose_config([])).prompts) == 8
    assert len(make_job(compose_config(["num_prompts=64"])).prompts) == 64


def test_expand_multiplies_out():
    assert expand(["a=1,2", "b=3"]) == [["a=1", "b=3"], ["a=2", "b=3"]]
