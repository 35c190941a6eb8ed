"""`python -m experiments.recommend`: what it proposes follows from the committed tables, the plans, and the memory."""

from __future__ import annotations

import csv
import json
import shlex
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from types import SimpleNamespace

import pytest

from experiments.job.cli import check_jobs, check_overrides, compose_config
from experiments.job.experiment import read_experiment
from experiments.job.groups import CONF, groups
from experiments.job.job import make_job
from experiments.job.paths import ROOT
from experiments.run.memory import bytes_of
from experiments.run.plan import count_work, probe
from experiments.studies import recommend
from experiments.studies.recommend import Choice, asked, choose, main, read_rules, told_calibration, told_method
from experiments.studies.recorded import TABLES, kv_figures, method_figures

EMBEDDED = ROOT / "experiments" / "embedded"
SHORT = {
    "magi": ["setting.num_frames=48", "setting.num_steps=8"],
    "skyreels": ["setting.num_frames=37", "setting.num_steps=10"],
    "wan": ["setting.num_frames=21"],
    "wan_teacher": ["setting.num_frames=21", "setting.num_steps=12"],
}


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch):
    """Counting whole videos takes seconds each, and is tested by itself (test_dry_run.py)."""
    trace = SimpleNamespace(trace=SimpleNamespace(flops=10**12))
    monkeypatch.setattr(recommend, "count", lambda config, method: trace)


@cache
def recommended(folder: str, *arguments: str, code: int = 0) -> str:
    with redirect_stdout(StringIO()) as said:
        assert main([f"checkpoint={EMBEDDED / folder}", *SHORT[folder], *arguments]) == code
    return said.getvalue()


def chosen(model: str, situation: str, *arguments: str) -> Choice:
    rules = read_rules()
    return choose(compose_config([f"model={model}"]), rules, situation, asked(arguments, rules))


def commands_in(said: str) -> list[list[str]]:
    """The lines to paste, as a shell reads them."""
    return [shlex.split(line) for line in said.splitlines() if line.startswith("  python ")]


def rows(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_plan_of_these_weights_is_taken_at_the_least_share_that_keeps_the_loss():
    said = recommended("skyreels")
    assert "skyreels, setting=embedded: 10 steps a chunk; the plan skyreels_embedded was made on these weights" in said
    assert "method=flowcast_fast reuse.share=0.35" in said
    row = next(r for r in rows("skyreels_embedded_placement.csv") if r["told"] == "reuse.share 0.35")
    psnr, share = float(row["psnr"]), float(row["compute_left"])
    assert (
        f"{share:.3f} of vanilla_kv's is left (measured on the embedded model of this family, {row['n']} videos" in said
    )
    assert f"quality   {psnr:.1f} ± {float(row['psnr_ci95']):.1f} dB of PSNR against vanilla_kv" in said
    assert "results/tables/skyreels_embedded_placement.csv" in said
    assert "full size" not in said
    assert "time      no record of it" in said
    run, planned = commands_in(said)
    assert "baseline=vanilla_kv" in run
    assert planned == [*run, "plan=true"]


@pytest.mark.parametrize(("loss", "share"), [("fast", "0.25"), ("visually_lossless", "0.35"), ("57", "0.5")])
def test_the_loss_chooses_the_share(loss, share):
    found = chosen("skyreels", "many_steps_with_plan", f"loss={loss}")
    assert found.overrides == ["method=flowcast_fast", f"reuse.share={share}"]
    assert found.keeps


def test_a_loss_that_no_record_keeps_is_said():
    found = chosen("wan", "few_steps", "loss=59")
    assert found.overrides == ["method=ar_cache", "reuse.threshold=2", "reuse.warmup_steps=0"]
    wish = asked(["loss=59"], read_rules())
    assert "no record on this family keeps 59 dB by this method; this is the nearest" in "\n".join(
        told_method(found, wish, "embedded")
    )


def test_a_share_is_taken_as_it_is_where_the_plan_has_it(capsys):
    assert chosen("skyreels", "many_steps_with_plan", "share=0.5").overrides[1] == "reuse.share=0.5"
    unrecorded = chosen("skyreels", "many_steps", "share=0.3")
    assert unrecorded.overrides == ["method=flowcast_online", "reuse.share=0.3"]
    told = "\n".join(told_method(unrecorded, asked(["share=0.3"], read_rules()), "embedded"))
    assert "there is no record of this method at this option" in told
    assert main([f"checkpoint={EMBEDDED / 'magi'}", "share=0.3"]) == 2
    assert "share=0.3 is none of the plan magi_embedded's, which has 0.15, 0.2, 0.25" in capsys.readouterr().err


def test_few_steps_take_what_is_recorded_for_few_steps():
    said = recommended("wan")
    assert "4 steps a chunk; the plan wan_embedded was made on these weights" in said
    assert "method=flowcast_fast reuse.share=0.65" in said
    assert "wan_embedded_field.csv" in said
    assert "experiments.calibrate" not in said
    found = chosen("wan", "few_steps")
    assert found.overrides == ["method=ar_cache", "reuse.threshold=3", "reuse.warmup_steps=0"]
    told = "\n".join(told_method(found, asked([], read_rules()), "embedded"))
    assert "note      a threshold fits the weights that it was found on" in told
    assert chosen("wan", "few_steps", "share=0.6").overrides == ["method=fewer_steps", "reuse.steps=[0,3]"]


def test_a_calibration_makes_the_share_that_was_asked_for_and_tells_what_it_brings():
    job = make_job(compose_config(["model=skyreels"]))
    told = {}
    for share in ("0.3", "0.35"):
        planned = chosen("skyreels", "many_steps_with_plan", f"share={share}")
        told[share] = "\n".join(told_calibration(job, planned, ["kv/store=int4"], ["model=skyreels"], "embedded"))
    assert "experiments.calibrate reuse=placed model=skyreels shares=0.3\n" in told["0.3"]
    assert "not on record" in told["0.3"]
    assert "experiments.calibrate reuse=placed model=skyreels\n" in told["0.35"]
    assert "(54.5 ± 1.8 dB of PSNR against vanilla_kv at 0.352 of its compute, measured on" in told["0.35"]
    assert "reuse.share=0.35 reuse.plan=outputs/plans/skyreels_embedded.json kv/store=int4\n" in told["0.35"]
    nothing = Choice("flowcast_fast", ["method=flowcast_fast"], None, None, False, None)
    assert "shares=" not in "\n".join(told_calibration(job, nothing, [], [], "paper"))


def test_full_size_says_that_nothing_is_measured_there():
    rules, wish = read_rules(), asked([], read_rules())
    config = compose_config(["model=magi", "setting=paper"])
    told = "\n".join(told_method(choose(config, rules, "many_steps", wish), wish, "paper"))
    assert "method=flowcast_online reuse.share=" in told
    assert (
        "measured on the embedded model of this family, 64 videos: results/tables/magi_embedded_placement.csv" in told
    )
    assert "nothing is measured at full size" in told


def test_without_a_plan_calibration_comes_first(tmp_path):
    plan = json.loads((CONF / "plans" / "wan_multistep_embedded.json").read_text(encoding="utf-8"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plan | {"weights": "0" * 16}), encoding="utf-8")
    said = recommended("wan_teacher", f"reuse.plan={other}", f"output_dir={tmp_path}", "memory=1GiB")
    assert "no plan was made on these weights" in said
    assert "method=flowcast_online reuse.share=0.35" in said
    calibrate, later, run, _ = commands_in(said)
    assert calibrate[:4] == ["python", "-m", "experiments.calibrate", "reuse=placed"]
    assert "model=wan_multistep" in calibrate
    assert f"reuse.plan={tmp_path}/plans/wan_multistep_embedded.json" in later
    assert {"method=flowcast_fast", "reuse.share=0.35"} <= set(later)
    assert said.index("experiments.calibrate") < said.index("until then:") < said.index("method=flowcast_online", 400)
    assert not any("reuse.plan" in word for word in run)


@pytest.mark.parametrize("folder", ["skyreels", "wan"])
def test_commands_can_be_pasted(folder):
    for call in commands_in(recommended(folder)):
        assert call[:2] == ["python", "run.py"]
        check_overrides(call[2:])
        check_jobs(call[2:], multirun=False)


# Memory.


def test_the_first_policy_that_fits_is_taken_in_the_order_of_the_rules():
    whole = recommended("magi")
    assert "kv=full: everything is kept" in whole
    assert "no limit was given" in whole
    peak = float(whole.partition("memory    ")[2].partition(" MiB")[0])
    kv = float(whole.partition("KV cache ")[2].partition(" MiB")[0])
    said = recommended("magi", f"memory={peak - kv / 4:.2f}MiB")
    assert "KV policy   kv/store=bfloat16: everything is kept, in 16 bits" in said
    assert "tried     the whole KV cache: takes" in said
    row = next(r for r in rows("magi_embedded_kv_precision.csv") if r["method"] == "vanilla_kv + bfloat16")
    assert f"{float(row['psnr']):.1f} ± {float(row['psnr_ci95']):.1f} dB of PSNR against vanilla, by itself" in said
    assert "kv/store=bfloat16" in commands_in(said)[0]


def test_nothing_that_fits_is_said():
    said = recommended("wan", "memory=5MiB", code=1)
    assert "none fits memory=5 MiB" in said
    assert "at least, from shapes" in said
    assert "tried     kv/store=int4: takes" in said
    assert "kv=sink_recent kv.budget=2 chunks: refused: " in said  # of a model with a window
    assert "ask for less" in said
    assert commands_in(said) == []


def test_sizes_of_memory():
    assert bytes_of("24GiB") == bytes_of("24 GiB") == 24 * 2**30
    assert bytes_of("1.5GB") == 1_500_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory=much"], "memory=much is not understood; write memory=24GiB"),
        (["memory=0GiB"], "memory=0GiB is not understood"),
        (["loss=fats"], "loss=fats is unknown; did you mean fast?"),
        (["loss=-3"], "loss=-3 is unknown"),
        (["share=2"], "share=2 must be a number above 0 and at most 1"),
        (["share=0.3", "loss=fast"], "give one of them"),
        (["method=vanilla"], "method= is what this command proposes"),
        (["weights=random"], "a recommendation means nothing of random weights"),
        (["sead=1"], "has no key 'sead'"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("recommend: ")
    assert message in said


# Rules and records.


def test_every_rule_names_what_is_there():
    rules = read_rules()
    named = {method for methods in rules["methods"].values() for method in methods}
    assert named <= set(groups()["method"].names)
    assert named == set(rules["curves"])
    assert all(read_experiment(name, [])["baseline"] for name in rules["records"].values())
    for entry in rules["kv"]:
        check_overrides(entry["overrides"])
        if "record" in entry:
            assert kv_figures("wan", "embedded", entry["record"]) is not None, entry["name"]
    assert rules["loss"] in rules["losses"]


def test_records_of_another_setting_are_the_embedded_models():
    rules = read_rules()
    found = method_figures("magi", "paper", "flowcast_fast", "flowcast", "reuse.share", rules["records"])
    assert {each.setting for each in found} == {"embedded"}
    assert [each.value for each in found] == ["0.15", "0.2", "0.25", "0.35", "0.5", "0.75"]
    assert method_figures("nobody", "paper", "flowcast_fast", "flowcast", "reuse.share", rules["records"]) == []
    assert kv_figures("nobody", "paper", rules["kv"][1]["record"]) is None


def test_a_method_that_measures_can_be_planned():
    overrides = ["model=skyreels", "method=flowcast_online", "setting.num_frames=37", "setting.num_steps=5"]
    config = compose_config(overrides)
    job = make_job(config)
    work = count_work(job, config)
    assert work.at_most
    assert work.activation_bytes > 0
    assert probe(job, job.load_model()).rows_s > 0
