"""Every command explains itself: its own --help in one style, run.py's from the comments in conf/, and completion."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import run
from experiments.benchmarks.bench import BENCHMARKS
from experiments.job.errors import BadInput
from experiments.job.groups import CONF, config_files, groups
from experiments.job.help import options_of, run_help
from experiments.job.paths import ROOT
from flowcache import checkpoints

COMMANDS = sorted(path.stem for path in (ROOT / "experiments" / "commands").glob("[!_]*.py"))


def said_by(main, arguments: list[str], capsys) -> str:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("name", [*COMMANDS, "records.__main__"])
def test_help_is_what_the_commands_module_says_of_itself(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    main = importlib.import_module(getattr(module, "MODULE", module.__name__)).main
    described = inspect.cleandoc(sys.modules[main.__module__].__doc__).replace("``", "`")
    for arguments in (["--help"], ["seed=[1", "-h"], ["list", "--help"]):
        said = said_by(main, arguments, capsys)
        assert said.startswith(described)
        assert said[len(described) :] in ("\n", "\n\nkey=value are options of a job: python run.py --help\n")
    assert f"`python -m experiments.{name.removesuffix('.__main__')}" in described
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_of_a_benchmark_is_its_own(name, capsys):
    module = importlib.import_module(BENCHMARKS[name])
    said = said_by(importlib.import_module("experiments.benchmarks.bench").main, [name, "--help"], capsys)
    assert said.startswith(inspect.cleandoc(module.__doc__).replace("``", "`"))
    assert all(option in said for option in module.OPTIONS)


def test_help_of_the_records_names_every_option(capsys):
    main = importlib.import_module("experiments.records.__main__").main
    said = said_by(main, ["--help"], capsys)
    for option in ("--state", "--method", "--other-code", "--yes", "--output-dir", "interrupted", "damaged"):
        assert option in said


def test_help_of_checkpoints_tells_how_to_verify_one(capsys):
    assert "`python -m flowcache.checkpoints verify PATH`" in said_by(checkpoints.main, ["--help"], capsys)


def test_bad_options_of_training_are_one_line(capsys):
    main = importlib.import_module("experiments.training.train_embedded").main
    for arguments, message in (
        (["model=maggi"], "no recipe for model=maggi; did you mean magi? there are magi, skyreels"),
        (["dit.recipe.num_stps=1"], "Key 'num_stps' is not in struct"),
        (["--num_steps=1"], "Key '--num_steps' is not in struct"),
        (["dit.recipe.guidance=3"], "name it with initial=<checkpoint directory>"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("train_embedded: ")
        assert message in said
        assert len(said.splitlines()) == 1


CHOSEN_BY_METHODS = ("reuse", "forecast", "kv")


def test_help_of_run_explains_every_common_option_and_lists_every_choice(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "seed=1", "--help"])
    assert run.main() == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == f"{run.__doc__.splitlines()[0]}".replace("``", "`")
    assert max(map(len, lines)) <= 120
    options = options_of(CONF / "config.yaml")
    assert [option.key for option in options] == _keys(OmegaConf.load(CONF / "config.yaml"))
    for option in options:
        assert option.meaning, f"{option.key} has no comment in conf/config.yaml"
        assert any(line.startswith(f"  {option.key}=") for line in lines)
        assert option.meaning in " ".join(said.split())
    for key, group in groups().items():
        default = "<the method's>" if key in CHOSEN_BY_METHODS else group.default
        assert f"  {key}={default}" in said
        assert ", ".join(group.names) in " ".join(said.split())
    for fixed in ("shared", "tuned", "model_setting", "training", "experiment"):
        assert not any(line.startswith(f"  {fixed}=") for line in lines)


def _keys(config: DictConfig) -> list[str]:
    """Of the values, with dots, but Hydra's own."""
    keys = []
    for key in config:
        if key not in ("defaults", "hydra"):
            value = config._get_node(key)
            keys += [f"{key}.{name}" for name in value] if isinstance(value, DictConfig) else [key]
    return keys


@pytest.mark.parametrize(
    ("group", "path"),
    [(group, path) for group in groups() for path in config_files(group)],
    ids=lambda value: str(value),
)
def test_help_of_a_choice_shows_its_options(group, path):
    said = run_help("", [f"{group}={path.stem}"])
    assert f"Options of {group}={path.stem}\n" in said
    lines = [line.split()[0] for line in said.splitlines() if line.strip()]
    content = OmegaConf.to_container(OmegaConf.load(path))
    for key in content.keys() - {"defaults", "name", "_target_"}:
        typed = f"{group.replace('/', '.')}.{key}"
        assert any(line.startswith((f"{typed}=", f"{typed}.")) for line in lines)


def test_options_are_read_with_their_comments(tmp_path):
    path = tmp_path / "part.yaml"
    path.write_text(
        "# What it is.\ndefaults:\n  - other\nname: part\nbudget: '2 chunks'   # of every layer,\n"
        "            # or of all\nstore:          # how keys are kept\n  _target_: some.Class\n  bits: 8\n"
        "  scale:\n    per: token   # or channel\nlast: []\n",
        encoding="utf-8",
    )
    assert [(option.typed, option.meaning) for option in options_of(path, "kv.")] == [
        ("kv.budget='2 chunks'", "of every layer, or of all"),
        ("kv.store.*", "how keys are kept"),
        ("kv.store.bits=8", ""),
        ("kv.store.scale.per=token", "or channel"),
        ("kv.last=[]", ""),
    ]


def test_help_of_a_choice_that_is_none_is_refused():
    with pytest.raises(BadInput, match="unknown method 'every'; did you mean every_k"):
        run_help("", ["method=every"])


def completed(line: str) -> list[str]:
    """What a shell offers behind a line, by the function that run.py installs."""
    script = f"""
        eval "$(python run.py -sc install=bash)"
        COMP_LINE="python run.py {line}"; COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=(python run.py {line or '""'}); COMP_CWORD=2
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, encoding="utf-8"
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_names_and_keys():
    assert completed("method=flowcache") == ["method=flowcache_fast", "method=flowcache_slow"]
    assert completed("num_p") == ["num_prompts="]
    offered = completed("")
    assert {"seed=", "model=", "method=", "setting="} <= set(offered)
    assert not {"shared=", "experiment=", "model_setting=", "training=", "tuned="} & set(offered)
