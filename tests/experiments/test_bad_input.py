"""Whatever is wrong with a command, its files or its machine: one clear message, a code, and nothing half-written."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from experiments.job.paths import ROOT
from experiments.job.prompts import MOST_PROMPT_CHARACTERS
from experiments.records import __main__ as records
from experiments.run import sweep
from experiments.studies import l1_rel, tune
from flowcache.models.base import MOST_SEED
from tests.experiments.broken_checkpoints import BROKEN, sign, whole
from tests.experiments.commands import SMALLEST, check, check_nothing_half_written, finished

USAGE = {
    # names
    "unknown model": (["model=maggi"], "unknown model 'maggi'; did you mean magi"),
    "unknown setting": (["setting=papper"], "unknown setting 'papper'; did you mean paper"),
    "unknown method": (["method=flowcach_fast"], "did you mean flowcache_fast"),
    "unknown method in a list": (["-m", "method=vanilla,every_kk"], "did you mean every_k"),
    "unknown key": (["sead=1"], "did you mean seed"),
    "unknown key of a part": (["reuse.thresold=0.1"], "reuse has no key 'thresold'; did you mean threshold"),
    "unknown key of the setting": (["setting.num_frame=24"], "did you mean num_frames"),
    "another method's key": (["method=every_k", "reuse.threshold=1"], "reuse has no key 'threshold'"),
    "an added key": (["+method.speed=9"], "method has no key 'speed'; there are"),
    "an added key at the root": (["+sead=7"], "the configuration has no key 'sead'; did you mean seed"),
    "a forced key": (["++num_prompt=1"], "no key 'num_prompt'; did you mean num_prompts"),
    "an added group that is none": (
        ["+experiment=main_table"],
        "is for python -m experiments.sweep",
    ),
    "a group that follows from others": (["tuned=magi_embedded_uniform"], "no key 'tuned'"),
    "an added group that is there": (["+method=vanilla"], "Multiple values for method"),
    "an added key that is there": (["+seed=7"], r"\+seed=7: seed is there already; leave out the \+"),
    "a key taken out": (["~seed"], "~seed would take out a setting, and a run needs all; give it a value"),
    "a group taken out": (["~method"], "~method would take out a setting"),
    "nothing in place of settings": (
        ["wandb=null"],
        "wandb holds settings; give wandb.<name>=<value>, of mode",
    ),
    "a value in place of settings": (["model.options=5"], "give model.options.<name>=<value>, of cfg_number, shift"),
    "a list in place of settings": (["-m", "kv.store=1,2"], "kv.store holds settings"),
    "an unknown key in braces": (["wandb={mod:offline}"], "wandb has no key 'mod'; did you mean mode"),
    "no group at all": (["method=null"], "unknown method 'null'; "),
    "unknown metric": (["metrics=[psnrr]"], "unknown metric 'psnrr'; did you mean psnr"),
    "metric is no list": (["metrics=psnr"], r"metrics=psnr must be a list, such as metrics=\[psnr,ssim\]"),
    "metric is a number": (["metrics=[7]"], "unknown metric '7'"),
    "unknown device": (["device=tpu"], "choose auto, cpu, cuda, or meta"),
    "device is a number": (["device=7"], "device=7 must be a name"),
    "device is not there": (["device=cuda:99"], "device=cuda:99 but"),
    "device number that torch wraps round": (["device=cuda:300"], "device=cuda:300 is unknown"),
    "a second CPU": (["device=cpu:1"], "device=cpu:1: there is one CPU; give device=cpu"),
    "dry run on a numbered device": (["device=meta:0"], "device=meta:0 is the dry run"),
    "unknown W&B mode": (["wandb.mode=onlin"], "unknown wandb.mode 'onlin'; did you mean online"),
    "unknown launcher": (["hydra/launcher=slurmm"], "unknown launcher .slurmm.; did you mean"),
    "no part at all": (["reuse._target_=os.system"], r"reuse._target_='os\.system' is no flowcache\.reuse\.base\.Reu"),
    "a part of another kind": (
        ["forecast._target_=flowcache.reuse.never.Never"],
        r"forecast._target_='.*Never' is no flowcache\.forecast\.base\.Forecast",
    ),
    "a part that does not exist": (["kv._target_=baselines.none.Such"], "kv._target_='.*' cannot be imported"),
    "a store that is none": (["kv.store._target_=os.system"], r"kv.store._target_='os\.system' is no flowcache"),
    # the command line itself
    "no value": (["seed"], "not of the form key=value"),
    "open bracket": (["prompts=[a"], r"""quote a text .*: 'prompts="\[a"'; in a list .* 'prompts=\["one","two"\]'"""),
    "list without -m": (
        ["seed=1,2"],
        r"""if it is one text, give 'seed="1,2"'; .* seed=\[...\], and run.py -m""",
    ),
    "words torn apart": (
        ["prompts=a", "red", "circle"],
        """if it belongs to prompts, give 'prompts="a red circle"'""",
    ),
    "reference to nothing": (["seed=${nothing}"], "nothing"),
    # the method's numbers
    "threshold below 0": (["reuse.threshold=-0.1"], "threshold=-0.1 must be a finite number of at least 0"),
    "threshold nan": (["reuse.threshold=nan"], "threshold=nan must be a finite number"),
    "threshold inf": (["reuse.threshold=inf"], "threshold=inf must be a finite number"),
    "threshold is text": (["reuse.threshold=low"], "threshold='low' must be a finite number"),
    "threshold is a switch": (["reuse.threshold=true"], "threshold=True must be a finite number"),
    "one bad threshold of many": (["-m", "reuse.threshold=0.1,-1,0.2"], "threshold=-1 must be"),
    "warm-up below 0": (["reuse.warmup_steps=-1"], "warmup_steps=-1 must be a whole number"),
    "warm-up in parts": (["reuse.warmup_steps=2.5"], "warmup_steps=2.5 must be a whole number"),
    "switch is text": (["method.near_clean=perhaps"], "near_clean='perhaps' must be true or false"),
    "every zeroth": (["method=every_k", "reuse.every=0"], "every=0 must be a finite number of at least 1"),
    "quantity is a number": (["forecast.quantity=5"], "quantity=5 must be the name of a model's quantity"),
    "distance is a number": (["reuse.distance=5"], "distance=5 must be the name of a distance"),
    "polynomial of words": (
        ["reuse.distance=rescaled_modulation", "reuse.polynomial=[a,b]"],
        "is no list of finite numbers",
    ),
    "budget garbled": (["kv.budget=2 blocks"], "write '2 chunks', '4096 tokens' or '64 MiB'"),
    "budget without unit": (["kv.budget=2"], "kv joint: budget=2 is not understood"),
    "budget below 0": (["kv.budget=-1 chunks"], "budget='-1 chunks' is not understood"),
    "lambda above 1": (["kv.mix_lambda=2"], "between 0 .redundancy only. and 1"),
    # the setting's numbers
    "frames below 0": (["setting.num_frames=-24"], "setting.num_frames=-24 must be a whole number"),
    "frames are text": (["setting.num_frames=many"], "setting.num_frames='many' must be a whole number"),
    "steps in parts": (["setting.num_steps=6.4"], "num_steps=6.4 must be a whole number"),
    "no frame rate": (["setting.fps=0"], "setting.fps=0 must be a whole number of at least 1"),
    "seed below 0": (["seed=-1"], "seed=-1 must be a whole number of at least 0"),
    "seed too large": ([f"seed={MOST_SEED + 1}"], f"choose 0 to {MOST_SEED}"),
    "seed is text": (["seed=abc"], "seed='abc' must be a whole number"),
    "too many prompts": (["num_prompts=65"], "choose 1 to 64"),
    "no prompts": (["num_prompts=0"], "choose 1 to 64"),
    "prompts in parts": (["num_prompts=1.5"], "num_prompts=1.5 must be a whole number"),
    "no workers": (["workers=0"], "workers=0 must be a whole number of at least 1"),
    "workers are text": (["workers=all"], "workers='all' must be a whole number"),
    "threads beyond measure": (["threads=100000"], "threads=100000 on .* cores"),
    "pairs below 0": (["latency_pairs=-1"], "latency_pairs=-1 must be a whole number of at least 0"),
    "force is text": (["force=maybe"], "force=maybe must be true or false"),
    "replay of no trace": (["replay=README.md"], "is not a trace of a run"),
    "plan is text": (["plan=maybe"], "plan=maybe must be true, false or null"),
    "any_code is text": (["any_code=maybe"], "any_code=maybe must be true or false"),
    "W&B tags are no list": (["wandb.tags=one"], r"wandb.tags=one must be a list"),
    "unknown kernel": (["attention_backend=flsh"], "attention_backend=flsh is unknown; did you mean flash"),
    "a GPU's kernel on a CPU": (
        ["attention_backend=cudnn", "device=cpu"],
        "attention_backend=cudnn is a GPU's; on a CPU choose auto, flash or math",
    ),
    "embedded is text": (["setting.embedded=perhaps"], "setting.embedded=perhaps must be true or false"),
    "compile is no switch": (["compile=maybe"], "compile=maybe must be true or false"),
    "unknown weights": (["weights=randm"], "weights=randm is unknown; did you mean random"),
    "distances of random weights": (["weights=random"], "which random weights make meaningless; give .*replay="),
    # prompts
    "prompt empty": (["prompts="], "there is no prompt in ''"),
    "prompt of spaces": (["prompts='   '"], "there is no prompt in"),
    "prompt too long": ([f"prompts={'word ' * 4000}"], f"characters; shorten it to {MOST_PROMPT_CHARACTERS}"),
    "prompt rings": (["prompts='a\acat'"], r"prompt 1 holds the control character U\+0007 at place 2"),
    "prompt steers the terminal": (["prompts=['ok','\x1b[2Ja cat']"], r"prompt 2 holds .* U\+001B at place 1"),
    "prompt ends early": (["prompts='a cat\0'"], r"U\+0000"),
    "prompt is a path to nothing": (["prompts=/data/none"], "no prompt file at /data/none"),
    "prompt file missing": (["prompts=missing.txt"], "no prompt file at missing.txt"),
    "prompt is a number": (["prompts=7"], "prompts=7 must be a text file, one prompt, or a list"),
    "second prompt in Chinese": (["prompts=[a cat,'一只猫']"], "prompt 2: nothing is left of the prompt '一只猫'"),
    "last prompt an address": (["prompts=[a cat,a dog,www.example.com]"], "prompt 3: nothing is left of the prompt"),
    "broken markup": (["prompts=['a <![cat[ x']"], "prompt 1: the prompt .* holds broken markup .*; write plain text"),
    "a check of prompts that is none": (["model.prompt_check=no.such"], "model.prompt_check='no.such' cannot be"),
    "frames too small for default metrics": (
        ["setting.height=16", "setting.width=64"],
        r"lpips: no metric of frames of 16 x 64 pixels; .* at least 31, or give metrics=\[psnr,psnr_frame,ssim,",
    ),
    "frames too small for two metrics": (
        ["setting.height=8", "setting.width=8", "metrics=[lpips_vgg,psnr,lpips]"],
        r"lpips_vgg, lpips: no metric of frames of 8 x 8 .* at least 31, or give metrics=\[psnr\]",
    ),
    "setting without prompts": (["setting=paper", "setting.prompts=null"], "give prompts=<file with one a line>"),
    "paper's weights": (["setting=paper", "prompts=a cat"], "give checkpoint=<directory>"),
    "checkpoint is a number": (["checkpoint=7"], "checkpoint=7 must be a path"),
    # dry run
    "dry run of nothing": (["device=meta", "setting.num_frames=50"], "try num_frames=48"),
    "dry run of a bad threshold": (["device=meta", "reuse.threshold=-1"], "threshold=-1 must be"),
    "dry run of no trace": (["device=meta", "replay=README.md"], "is not a trace of a run"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_bad_usage(arguments, message, command, tmp_path):
    check(command(*arguments), 2, message)
    if "device=meta" not in arguments:  # where Hydra has noted the configuration before the model could say
        assert not (tmp_path / "results").exists()
    assert not list(tmp_path.rglob("*.mkv"))


# What only the model can tell, once it is loaded.
IMPOSSIBLE = {
    "frames do not fill chunks": (["setting.num_frames=50"], "try num_frames=48"),
    "no frames": (["setting.num_frames=0"], "num_frames=0 does not fill whole chunks of 24 frames; try num_frames=24"),
    "height does not divide": (["setting.height=60"], "60 x 64 pixels cannot be split .* multiples of 16"),
    "no width": (["setting.width=0"], "use multiples of 16"),
    "steps do not divide": (["setting.num_steps=62"], "choose a multiple of 4"),
    "no steps": (["setting.num_steps=0"], "num_steps=0 must be a whole number of at least 1"),
    "guidance of no kind": (["model.options.cfg_number=2"], "choose 1 .distilled. or 3"),
    "shift of nothing": (["model.options.shift=0"], "shift=0 must be a finite number above 0"),
    "look-back of words": (
        ["model.options.noise2clean_kvrange=[a]"],
        r"noise2clean_kvrange=\('a',\) must be a list of",
    ),
    "look-back is no list": (["model.options.noise2clean_kvrange=5"], "noise2clean_kvrange=5 must be a list of whole"),
    "look-back of nothing": (["model.options.noise2clean_kvrange=[0]"], "whole numbers of at least 1"),
    "clean look-back of nothing": (["model.options.clean_chunk_kvrange=0"], "whole number of at least 1, or -1"),
    "a loader that is none": (
        ["model.loader=os.system"],
        "'os.system' is no loader of a model",
    ),
    "a loader that does not exist": (["model.loader=flowcache.models.magy.Magi"], "is no loader of a model"),
    "budget too small in bytes": (["kv.budget=1 KiB"], "the smallest that would do is '"),
    "budget of nothing": (["kv.budget=0 tokens"], "the smallest that would do is '1 tokens'"),
    "budget beyond memory": (["kv.budget=99999999 GiB"], "GiB' takes .*; lower it"),
    "budget of half frames": (
        ["kv.budget=7 tokens", "kv.selection=frame"],
        "'7 tokens' is 7 tokens per head, and Joint keeps a whole number of units of 16 tokens",
    ),
    "warm-up beyond the steps": (
        ["method=flowcache_fast", "reuse.warmup_steps=65", "setting.num_steps=64"],
        "warmup_steps=65 is more than the 64 steps of a chunk, .*choose 0 to 64",
    ),
    "every_k's warm-up beyond the steps": (["method=every_k", "reuse.warmup_steps=5"], "more than the 4 steps"),
    "TeaCache's warm-up beyond the rows": (
        ["method=teacache_fast", "reuse.warmup_steps=9", "setting.num_steps=8"],
        "warmup_steps=9 is more than the 8 rows of a window",
    ),
    "distance of another model": (
        ["method=flowcache_fast", "reuse.warmup_steps=1", "reuse.distance=colour"],
        "distance='colour' is unknown to MAGI-1; choose 'embedded_latent', 'latent', 'clean' or 'filtered_latent'",
    ),
    "quantity of another model": (
        ["forecast.quantity=residual"],
        "quantity='residual' does not exist on MAGI-1; choose 'velocity', 'clean' or 'displacement'",
    ),
    "quantity of no model": (["forecast.quantity=output"], "choose 'velocity', 'clean' or 'displacement'"),
}


@pytest.mark.parametrize(("arguments", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_the_model_cannot_make(arguments, message, command, tmp_path):
    check(command(*SMALLEST, *arguments), 2, message)
    assert not list((tmp_path / "results").glob("runs/*"))


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_checkpoint(broken, message, command, tmp_path):
    directory = whole(tmp_path / "checkpoint")
    broken(directory)
    check(command(*SMALLEST, f"checkpoint={directory}"), 2, message)
    check_nothing_half_written(tmp_path / "results")
    assert not list(tmp_path.rglob("*.mkv"))
    assert not sign(directory).exists()


def test_checkpoints_that_are_none(command, tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    for path in ("nowhere", "file"):
        outcome = command(*SMALLEST, f"checkpoint={tmp_path / path}")
        check(outcome, 2, "no checkpoint directory at .*; give the path of a downloaded checkpoint")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", "/"):
        check(command(*SMALLEST, f"checkpoint={path}"), 2, r" is no checkpoint of MAGI-1 \(.*\) or of SkyReels-V2")


def test_prompt_files_that_are_none(command, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\x89PNG\r\n\x1a\n\xff\0")
    check(command(f"prompts={tmp_path / 'prompts.txt'}"), 2, "cannot be read as UTF-8 text .*write one prompt a line")
    (tmp_path / "prompts.txt").write_text("\n \n", encoding="utf-8")
    check(command(f"prompts={tmp_path / 'prompts.txt'}"), 2, "there is no prompt in")
    (tmp_path / "prompts.txt").write_text("a cat\na\x0bdog\n", encoding="utf-8")
    check(command(f"prompts={tmp_path / 'prompts.txt'}"), 2, r"prompt 2 holds the control character U\+000B")
    check(command(f"prompts={tmp_path}"), 2, "no prompt file at")


def test_results_go_to_a_folder_that_can_be_written(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    for path in ("file", "file/below"):
        check(command(*SMALLEST, f"output_dir={tmp_path / path}"), 2, "is a file; give output_dir=<folder>")
    check(command(*SMALLEST, "output_dir="), 2, "output_dir='' must be a name")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "not a folder"
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # not every user is bound by permissions
    check(command(*SMALLEST), 2, "cannot be written; give output_dir=<folder that you can write>")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("multirun", [False, True])
def test_results_are_in_one_place_wherever_a_program_is_started(command, tmp_path, monkeypatch, capsys, multirun):
    (tmp_path / "elsewhere" / "outputs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    directory = os.path.relpath(tmp_path / "results", ROOT)  # relative: from the repository
    assert command(*SMALLEST, f"output_dir={directory}", *["-m"] * multirun) == (0, "")
    printed = "".join(command.printed.split())  # the console breaks lines
    assert f"resultsgoto{tmp_path / 'results'}" in printed
    assert f"allvideos,traces,records{tmp_path / 'results' / 'runs'}" in printed
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"runs", "hydra"}
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*")] == ["outputs"]
    monkeypatch.chdir(tmp_path)
    assert records.main(["list", "--output-dir", directory]) == 0
    assert "1 run" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "results")
    assert command(*SMALLEST, f"output_dir={directory}") == (0, "")
    assert "first video  runs/" in command.printed  # as short as it can be used from there


def test_a_long_or_bracketed_prompt_is_text_like_any_other(command, tmp_path):
    prompts = ["a cat [/bold] " + "and a dog " * 500, "[red]x", "../../etc/passwd"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    arguments = [argument for argument in SMALLEST if not argument.startswith("num_prompts")]
    assert command(*arguments, f"prompts={tmp_path / 'prompts.txt'}") == (0, "")
    made = finished(tmp_path / "results")
    assert sorted(record.prompt for record in made) == sorted(prompt.strip() for prompt in prompts)
    assert all(re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", record.key) for record in made)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (sweep.main, ["experiment=main_tabel"], "unknown experiment 'main_tabel'; did you mean main_table"),
        (sweep.main, ["seed=one"], "seed='one' must be a whole number"),
        (sweep.main, ["output_dir=/dev/null"], "is a file; give output_dir=<folder>"),
        (tune.main, ["method=teacache_fast", "share=most"], "give share=<wanted share of vanilla's compute>"),
        (tune.main, ["method=vanilla", "share=0.5"], "method vanilla has no number of its own to tune"),
        (
            tune.main,
            ["method=every_k", "share=0.5"],
            "several numbers; give option=<one of reuse.every, reuse.warmup_steps>",
        ),
        (
            tune.main,
            ["method=every_k", "share=0.5", "option=evry"],
            "has no number 'evry' to tune; did you mean reuse.every?",
        ),
        (tune.main, ["share=0.5", "between=1"], "between=1 must be two numbers from 0 on, the lower first"),
        (tune.main, ["share=0.5", "between=2,1"], "between=2,1 must be two numbers from 0 on, the lower first"),
        (tune.main, ["setting.num_frames=25", "share=0.5"], "try num_frames=24"),
        (tune.main, ["reuse.warmup_steps=65", "share=0.5"], "warmup_steps=65 is more than the 64 steps"),
        (l1_rel.main, ["setting.num_frames=25", "output_dir=no_such_folder"], "try num_frames=24"),
    ],
)
def test_other_commands_say_it_as_well(main, arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.splitlines()) == 1


def test_a_state_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        records.main(["list", "--state", "finishd"])
    assert ended.value.code == 2
    assert "invalid choice: 'finishd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["method=flowcach_fast"], 2, "did you mean flowcache_fast"),
        (["seed=[1"], 2, "quote a text"),
        (["output_dir=/dev/null/results"], 2, "is a file"),
        (["reuse.warmup_steps=65", "num_prompts=2", "workers=2"], 2, "warmup_steps=65 is more than the 64 steps"),
    ],
)
def test_the_command_itself(arguments, code, message, tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), f"output_dir={tmp_path}", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    check((done.returncode, done.stderr), code, message)
    check_nothing_half_written(tmp_path)
