"""Configuration: every file composes, every mistake is one clear message before any work."""

import re
import shlex
import shutil

import pytest

from experiments.job import cli
from experiments.job.cli import check_overrides, compose_config
from experiments.job.compose import named_method
from experiments.job.errors import BadInput
from experiments.job.experiment import expand, jobs_of
from experiments.job.groups import CONF, config_files, groups
from experiments.job.job import make_job
from experiments.job.method import PARTS, make_method
from experiments.job.prompts import read_prompts
from experiments.records.collect import described
from experiments.show.claims import the_one
from flowcache.kv.select.full import Everything
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.reuse.placed import Placed

MODELS = ("magi", "skyreels", "wan")


@pytest.mark.parametrize("path", config_files("method"), ids=lambda p: p.stem)
def test_every_method_composes(path):
    config = compose_config([f"method={path.stem}"])
    assert config.method.name == path.stem
    method = make_method(config)
    assert isinstance(method, Method)
    # The YAML spells every shared option out: it is the place where a user reads what can be set.
    assert set(config.method) == {"name", *method.__dataclass_fields__} - set(PARTS)


@pytest.mark.parametrize(
    ("arguments", "pairs"), [([], 8), (["setting=paper"], 3), (["setting=paper", "latency_pairs=6"], 6)]
)
def test_a_setting_says_how_many_pairs_are_timed(arguments, pairs):
    assert compose_config(arguments).latency_pairs == pairs


@pytest.mark.parametrize("model", [*MODELS, "wan_multistep"])
@pytest.mark.parametrize("path", config_files("experiment"), ids=lambda p: p.stem)
def test_every_experiment_expands_to_jobs_with_the_baseline_first(path, model, tmp_path):
    jobs, experiment = jobs_of(path.stem, [f"model={model}", f"checkpoint={tmp_path}"])
    assert {job.model_name for job in jobs} == {model}
    assert jobs[0].is_baseline
    assert jobs[0].method_name == experiment["baseline"]
    assert {job.baseline for job in jobs} == {experiment["baseline"]}
    assert len(jobs) >= 3
    assert len({(repr(job.method), repr(job.generation_options), job.seed) for job in jobs}) == len(jobs)
    if "figure" in experiment:
        known = {"method", "flops_share", "kv_bits", "kv_mib", *_options(jobs)}
        assert {experiment["figure"]["x"], *experiment["figure"]["lines"]} <= known
    for claim in experiment.get("claims", []):
        assert the_one(jobs, claim["of"]) != the_one(jobs, claim["against"])
    planned = [job.method.reuse for job in jobs if isinstance(job.method.reuse, Placed)]
    assert all(reuse.share in reuse.plan.shares for reuse in planned if reuse.plan is not None)


@pytest.mark.parametrize("model", MODELS)
def test_the_ablation_of_forecasts_has_our_method_as_it_is(model, tmp_path):
    """The slope and the correction that its file names are those of the model's corrected forecast."""
    jobs, _ = jobs_of("ablation_forecast", [f"model={model}", f"checkpoint={tmp_path}"])
    assert named_method("flowcast_slow", model, "embedded")[0] in [job.method for job in jobs]


def test_what_an_experiment_says_of_a_model_is_for_that_model(tmp_path):
    def of(model, name):
        return jobs_of(name, [f"model={model}", f"checkpoint={tmp_path}"])

    methods = {model: {job.method_name for job in of(model, "main_table")[0]} for model in MODELS}
    of_few_steps = {"fewer_steps", "x_cache"}
    in_part = {"motioncache_fast", "motioncache_slow"}
    assert methods["skyreels"] == {path.stem for path in config_files("method")} - of_few_steps
    assert methods["skyreels"] - methods["magi"] == {"vanilla_causal", "vanilla_kv"}  # on MAGI-1 the same as vanilla
    assert methods["wan"] - methods["magi"] == of_few_steps
    assert methods["magi"] - methods["wan"] == in_part
    in_full = {model: {job.method_name for job in of(model, "vbench_full")[0]} for model in MODELS}
    assert in_full["magi"] == in_full["skyreels"] == methods["magi"]
    assert in_full["wan"] == methods["magi"] - in_part
    lengths = [{job.num_frames for job in of(model, "long_video")[0]} for model in MODELS]
    assert lengths == [{1920}, {1777}, {813}]
    baselines = {model: of(model, "ablation_kv_budget")[1]["baseline"] for model in MODELS}
    assert baselines == {"magi": "vanilla", "skyreels": "vanilla_kv", "wan": "vanilla"}
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


@pytest.mark.parametrize("model", [*MODELS, "wan_multistep"])
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
        policy = make_method(compose_config([f"method={name}"])).reuse
        assert (policy.threshold, policy.warmup_steps) == (threshold, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=flowcach_fast"], "did you mean flowcache_fast"),
        (["model=maggi"], "did you mean magi"),
        (["setting=embeded"], "did you mean embedded"),
        (["reuse.thresold=1"], "did you mean threshold"),
        (["kv.budge=1 chunk"], "kv has no key 'budge'; did you mean budget"),
        (["kv.mixlambda=1"], "kv has no key 'mixlambda'; did you mean mix_lambda"),
        (["method=every_k", "reuse.threshold=1"], "reuse has no key 'threshold'"),
        (["sead=1"], "did you mean seed"),
        (["seed"], "not of the form key=value"),
        (["method=vanilla,flowcache_fast", "reuse.threshold=1"], "no key 'threshold'"),
    ],
)
def test_misspelt_overrides_name_the_nearest(overrides, message):
    with pytest.raises(BadInput, match=message):
        check_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reuse.threshold=-0.1"], "at least 0"),
        (["reuse.threshold=nan"], "finite"),
        (["reuse.warmup_steps=2.5"], "whole number"),
        (["forecast.quantity=5"], "forecast hold: quantity=5 must be the name of a model's quantity"),
        (["kv.budget=2 blocks"], "write '2 chunks', '4096 tokens' or '64 MiB', or null for no budget"),
        (["kv.budget=2"], "kv joint: budget=2 is not understood"),
        (["kv.mix_lambda=2"], "between 0 .redundancy only. and 1"),
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


@pytest.mark.parametrize(
    ("caption", "before", "after"),
    [
        ("a red, round ball", "if it is one text, give ", "; a list is written"),
        *((text, "or such: ", "$") for text in ("一只猫", "what? yes!", 'it says "hi"', "it's here", "50% {off}")),
        *((text, "or such: ", "; in a list quote every text") for text in ("it's [here]", "[a, b")),
    ],
)
def test_a_text_that_must_be_quoted_is_said_how_to_type(caption, before, after):
    with pytest.raises(BadInput, match=before) as refused:
        compose_config([f"prompts={caption}"])
    (typed_in,) = shlex.split(re.search(f"{before}(.*){after}", str(refused.value))[1])
    check_overrides([typed_in])
    assert read_prompts(compose_config([typed_in])) == (caption,)


def test_only_what_is_measured_of_a_video_is_asked_of_its_size_and_prompt(tmp_path):
    small = ["setting.height=16", "setting.width=16"]
    make_job(compose_config([*small, "method=vanilla"]))  # nothing to compare with
    make_job(compose_config([*small, "method=every_k", "metrics=[psnr,ssim,ssim_skimage,caption]"]))
    make_job(compose_config([*small, "method=every_k", "weights=random"]))
    assert make_job(compose_config(["method=every_k", "weights=random", "prompts='一只猫'"])).prompts == ("一只猫",)
    assert make_job(compose_config(["model=skyreels", "prompts='一只猫'"])).prompts == ("一只猫",)
    with pytest.raises(BadInput, match="prompt 1: nothing is left"):
        make_job(compose_config(["method=every_k", "prompts='一只猫'"]))


def test_device_cpu_with_its_number_is_the_cpu():
    assert make_job(compose_config(["device=cpu:0"])).device == "cpu"


def test_options_are_run_pys_alone():
    with pytest.raises(BadInput, match="-m is no option of this command; give arguments of the form key=value"):
        jobs_of("main_table", ["-m", "num_prompts=1"])


@pytest.fixture
def more_groups(tmp_path, monkeypatch):
    """A configuration with a group beside the others, and one in it."""
    conf = shutil.copytree(CONF, tmp_path / "conf")
    files = {
        "sparsity/dense.yaml": "name: dense\n",
        "sparsity/window.yaml": "name: window\nwidth: 4 chunks\nsinks: 1\n",
        "sparsity/mask/exact.yaml": "bits: 16\n",
        "sparsity/mask/grouped.yaml": "bits: 4\ngroup_size: 64\n",
    }
    for name, content in files.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(content, encoding="utf-8")
    config = (conf / "config.yaml").read_text(encoding="utf-8")
    listed = "  - method: flowcache_fast\n"
    assert listed in config
    config = config.replace(listed, f"{listed}  - sparsity: dense\n  - optional sparsity/mask: exact\n")
    (conf / "config.yaml").write_text(config, encoding="utf-8")
    for place in ("experiments.job.groups.CONF", "experiments.job.compose.CONF"):
        monkeypatch.setattr(place, conf)
    groups.cache_clear(), cli._composed.cache_clear()
    yield
    groups.cache_clear(), cli._composed.cache_clear()


def test_a_new_group_needs_no_code(more_groups):
    parts = ["reuse", "forecast", "kv", "kv/store"]
    assert list(groups()) == ["model", "setting", *parts, "method", "sparsity", "sparsity/mask"]
    assert groups()["sparsity/mask"].names == ["exact", "grouped"]
    assert groups()["sparsity/mask"].default == "exact"
    fitting = [
        ["sparsity=window", "sparsity.width=2 chunks"],
        ["sparsity.sinks=0", "method=vanilla", "sparsity=window"],
        ["sparsity/mask=grouped", "sparsity.mask.group_size=32", "sparsity.mask.bits=2"],
        ["sparsity=dense,window", "sparsity/mask=grouped", "sparsity.mask.group_size=16,32", "sparsity.name=other"],
        ["model=skyreels", "sparsity.mask={bits:8}"],
    ]
    for overrides in fitting:
        check_overrides(overrides)
    config = compose_config(["sparsity=window", "sparsity.width=2 chunks", "sparsity/mask=grouped"])
    assert config.sparsity == {
        "name": "window",
        "width": "2 chunks",
        "sinks": 1,
        "mask": {"bits": 4, "group_size": 64},
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity=windw"], "unknown sparsity 'windw'; did you mean window"),
        (["sparsity=dense,win"], "unknown sparsity 'win'"),
        (["sparsity/mask=int4"], "unknown sparsity/mask 'int4'; there are exact, grouped"),
        (["sparsity/mas=exact"], "no key 'sparsity/mas'; did you mean sparsity/mask"),
        (["sparsity.width=2 chunks"], "sparsity has no key 'width'; there are mask, name"),
        (["sparsity=window,dense", "sparsity.width=2 chunks"], "sparsity has no key 'width'"),
        (["sparsity=window", "sparsity.widht=2 chunks"], "sparsity has no key 'widht'; did you mean width"),
        (["sparsity/mask=grouped,exact", "sparsity.mask.group_size=3"], "sparsity.mask has no key 'group_size'"),
        (["sparsity.mask={bit:8}"], "sparsity.mask has no key 'bit'; did you mean bits"),
        (["sparsity.mask=8"], "sparsity.mask=8: sparsity.mask holds settings"),
        (["sparsity={mask:8}"], "unknown sparsity"),
    ],
)
def test_a_new_groups_names_and_keys_are_checked(more_groups, overrides, message):
    with pytest.raises(BadInput, match=message):
        check_overrides(overrides)


def test_names_may_be_quoted_and_of_a_pattern():
    check_overrides(["method='flowcache_fast'", "reuse.threshold=0.1"])
    check_overrides(["method=glob(flowcache*)", "reuse.threshold=0.1"])
    with pytest.raises(BadInput, match="no key 'threshold'"):
        check_overrides(["method=glob(*)", "reuse.threshold=0.1"])
    with pytest.raises(BadInput, match=r"unknown method 'glob\(q\*\)'"):
        check_overrides(["method=glob(q*)"])


def test_a_models_own_options_need_not_be_whole_numbers():
    given = {"guidance_scale": 5.5, "shift": 3.0, "corrector": "published", "ar_step": 4}
    overrides = [f"model.options.{key}={value}" for key, value in given.items()]
    job = make_job(compose_config(["model=skyreels", "prompts=a cat", *overrides]))
    assert given.items() <= job.generation_options.items()


def test_compression_is_off_and_set_by_a_budget_and_its_own_options():
    method = make_method(compose_config(["method=flowcache_fast"]))
    assert (method.kv.budget, method.kv.select) == (None, Everything())
    overrides = ["method=every_k", "kv.budget=2 chunks", "kv.selection=frame"]
    check_overrides(overrides)
    method = make_method(compose_config(overrides))
    assert (method.kv.budget, method.kv.select) == ("2 chunks", Joint(selection="frame"))


def test_prompts_from_list_text_and_file(tmp_path):
    assert make_job(compose_config(["prompts=[a,b,c]"])).prompts == ("a", "b", "c")
    assert make_job(compose_config(["prompts=a red circle"])).prompts == ("a red circle",)
    (tmp_path / "mine.txt").write_text("one\n\n two \n", encoding="utf-8")
    assert make_job(compose_config([f"prompts={tmp_path / 'mine.txt'}"])).prompts == ("one", "two")
    assert len(make_job(compose_config([])).prompts) == 8
    assert len(make_job(compose_config(["num_prompts=64"])).prompts) == 64


def test_expand_multiplies_out():
    assert expand(["a=1,2", "b=3"]) == [["a=1", "b=3"], ["a=2", "b=3"]]
    assert expand(["a=[0,1],[2]", "b=c,[]"]) == [[f"a={a}", f"b={b}"] for a in ("[0,1]", "[2]") for b in ("c", "[]")]
