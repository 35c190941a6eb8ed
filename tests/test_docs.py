"""README and docs: links and anchors lead somewhere, every command composes, and the site builds without a warning."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.benchmarks.bench import BENCHMARKS, WITHOUT_JOB
from experiments.job.cli import _jobs, check_overrides, compose_config
from experiments.job.errors import BadInput
from experiments.job.experiment import experiment_of, read_experiment
from experiments.job.groups import config_files
from experiments.job.help import documentation
from experiments.job.job import make_job
from experiments.job.paths import ROOT
from flowcache.console import commands

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "results/README.md", "experiments/embedded/*/README.md")
    for path in ROOT.glob(pattern)
)
IDS = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STARTS = ("python ", "torchrun ", "make ", "pip ", "flowcache-bench ", "docker ")
LAUNCHING = ("hydra/launcher", "hydra.launcher")
DEVICE = ("device=", "attention_backend=")  # which this machine need not have


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Without code."""
    return re.sub(r"`[^`\n]+`", "`code`", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Of its headings, as a hosting site names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)).lower() for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def test_an_anchor_is_a_heading_in_lower_case_without_its_signs():
    found = anchors("# A `b_c`, d\n```\n# no heading\n```\n## [Which](x.md) KV-policy?\n")
    assert found == {"a-b_c-d", "which-kv-policy"}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_and_anchor_leads_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text_of(target)):
            wrong.append(f"{link}: no such heading")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_list_begins_after_an_empty_line(page):
    """Without one it is a paragraph on the site, though not where the repository is hosted."""
    lines = FENCE.sub("", text_of(page)).splitlines()
    begins = [
        line
        for before, line in pairwise(lines)
        if re.match(r"([-*]|\d+\.) ", line) and before.strip() and not re.match(r"([-*]|\d+\.) |\s", before)
    ]
    assert begins == []


def lines_of(page: Path) -> list[str]:
    """The command lines of a page: of its blocks (after a $, where outputs are shown), and those quoted in its text."""
    text, found, names = text_of(page), [], {}
    for language, block in FENCE.findall(text):
        if language in ("", "bash", "console"):
            for line in block.splitlines():
                line = line.removeprefix("$ ").strip()
                if assigned := re.match(r'(\w+)="(.*)"$', line):
                    names[assigned[1]] = assigned[2]
                for name, value in names.items():
                    line = re.sub(rf"^\${name}\b", value, line)
                found.append(line)
    found += re.findall(r"`((?:python|make|flowcache-bench) [^`\n]+)`", FENCE.sub("", text))
    return [line for line in found if line.startswith(STARTS)]


def calls_of(line: str) -> list[list[str]]:
    """The words of every command of a line; of words with alternatives (a|b), as many commands."""
    calls: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            calls.append([])
        elif word not in ("...", ".", "[key=value"):
            calls[-1].append(word)
    return [one for call in calls if call for one in alternatives(call)]


def alternatives(call: list[str]) -> list[list[str]]:
    for place, word in enumerate(call):
        key, equals, value = word.rpartition("=")
        if "|" in value:
            return [[*call[:place], f"{key}{equals}{name}", *call[place + 1 :]] for name in value.split("|")]
    return [call]


CALLS = {  # each once, with the first page that says it
    shlex.join(call): page for page in reversed(PAGES) for line in lines_of(page) for call in calls_of(line)
}


def test_lines_are_found_and_read():
    assert len(CALLS) > 100
    assert calls_of('python run.py kv.budget="2 chunks" && make test   # both') == [
        ["python", "run.py", "kv.budget=2 chunks"],
        ["make", "test"],
    ]
    assert calls_of("python x model=a|b seed=1") == [["python", "x", f"model={m}", "seed=1"] for m in "ab"]


def filled_in(words: list[str], folder: Path) -> list[str]:
    """With files that are here in place of those that a page only names: shipped ones for what its commands write, and
    an empty folder for weights."""
    filled = []
    for word in words:
        word = re.sub(r"^(checkpoint|model\.files\.\w+)=.*", rf"\1={folder}", word)
        word = re.sub(r"=outputs/(plans|heads|ratios)/", rf"={ROOT}/conf/\1/", word)
        filled.append(word)
    if "setting=paper" in filled and not any(word.startswith("checkpoint=") for word in filled):
        filled.append(f"checkpoint={folder}")
    return [word for word in filled if not word.startswith("replay=") and word != "weights=random"]


def check_job(overrides: list[str], multirun: bool = False) -> None:
    """Every job of it is made, short of its weights; on the CPU, wherever it is meant for."""
    check_overrides(overrides)
    kept = [word for word in overrides if not word.startswith((*LAUNCHING, *DEVICE))]
    for one in _jobs(kept) if multirun else [kept]:
        make_job(compose_config(one))


def check_experiment(name: str, arguments: list[str], folder: Path) -> None:
    """The options of ``python -m experiments.<name>``: its own are told by its help, the others are a job's."""
    module = commands(ROOT)[name][1]
    if name == "records":
        importlib.import_module("experiments.records.__main__")._parser().parse_args(arguments)
        return
    started = "experiments.commands." + name
    home = importlib.import_module(started).MODULE
    told = documentation(home)
    if name == "bench":
        benchmark, *arguments = arguments
        home = BENCHMARKS[benchmark]
        own = set(importlib.import_module(home).OPTIONS)
    else:
        own = {key for key in re.findall(r"[\[` ](\w+)=", told) if key != "experiment" and not is_option(key)}
    rest = [word for word in arguments if word.partition("=")[0] not in own | {"publish", "tasks"}]
    rest = filled_in([word for word in rest if not word.startswith(LAUNCHING)], folder)
    if name == "train_embedded":
        (model,) = rest
        assert model.removeprefix("model=") in [path.stem for path in config_files("training")]
    elif name == "bench" and benchmark in WITHOUT_JOB:
        check_overrides(rest)
    elif any(word.startswith("experiment=") for word in rest) or name == "sweep":
        experiment, extra = experiment_of(rest)
        read_experiment(experiment, extra)  # whose jobs tests/experiments/test_cli.py makes
        check_job(extra)
    else:
        check_job(rest)
    assert module == f"experiments.{name}"


def is_option(key: str) -> bool:
    """Of a job."""
    try:
        check_overrides([f"{key}=1"])
    except BadInput as error:
        return "unknown" in str(error)  # a group, of which 1 is no name
    return True


def check_call(call: list[str], folder: Path) -> None:
    program, *words = [word for word in call if not re.fullmatch(r"\[.*\]", word)]
    if program == "torchrun":
        option, processes, *words = words
        assert (option, words[0]) == ("--nproc-per-node", "run.py")
        with pytest.MonkeyPatch.context() as started:
            started.setenv("WORLD_SIZE", processes)
            check_call(["python", *words], folder)
        return
    if program == "flowcache-bench":
        if words:
            program, words = "python", [*commands(ROOT)[words[0]], *words[1:]]
            words[0] = words[0].removeprefix(f"{ROOT}/")
        else:
            return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
    elif program == "pip":
        extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert {extra for group in named for extra in group.split(",")} <= set(extras)
        listed = [words[place + 1] for place, word in enumerate(words) if word == "-r"]
        assert [name for name in listed if not (ROOT / name).is_file()] == []
    elif program == "docker":
        named = [word.partition("=")[0] for before, word in pairwise(words) if before == "--build-arg"]
        assert set(named) <= set(re.findall(r"^ARG (\w+)", text_of(ROOT / "Dockerfile"), re.MULTILINE))
    elif words[0] == "run.py":
        arguments = [word for word in words[1:] if "=" in word]
        assert set(words[1:]) - set(arguments) <= {"-m", "--help", "--cfg", "job", "--hydra-help", "-sc"}
        if "-sc" not in words:
            check_job(filled_in(arguments, folder), "-m" in words)
    elif words[0] == "-m" and words[1].startswith("experiments.") and words[1].count(".") == 1:
        check_experiment(words[1].removeprefix("experiments."), words[2:], folder)
    elif words[0] == "-m":
        spec = find_spec(words[1])
        assert spec is not None, f"there is no {words[1]}"
        source = (
            spec.origin if spec.submodule_search_locations is None else str(Path(spec.origin).with_name("__main__.py"))
        )
        own = [
            word for word in words[2:3] if re.fullmatch("[a-z]+", word) and words[1] not in ("notebooks.build", "venv")
        ]
        assert [word for word in own if f'"{word}"' not in text_of(Path(source))] == []
    else:
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"


@pytest.mark.parametrize("line", CALLS, ids=[f"{page.name}: {line[:90]}" for line, page in CALLS.items()])
def test_every_command_composes(line, tmp_path):
    words = [word.replace("experiment=<name>", "experiment=placement") for word in shlex.split(line)]
    check_call([re.sub(r"<[\w ]+>", str(tmp_path), word) for word in words], tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "python run.py sead=1",
        "torchrun --nproc-per-node 2 run.py",
        "python run.py method=flowcache_fsat",
        "python run.py -m method=vanilla,every_l",
        "python run.py reuse.threshold=-1",
        "python -m experiments.tabels",
        "python -m experiments.sweep experiment=main_tabel",
        "python -m experiments.tune method=teacache_fast shaer=0.5",
        "python -m experiments.bench latency repeats=6",
        "python -m experiments.records lits",
        "python -m eval.vbench scoer x",
        "make tset",
        "pip install -r requirements-none.txt",
    ],
)
def test_a_stale_command_is_found(line, tmp_path):
    (call,) = calls_of(line)
    with pytest.raises((AssertionError, BadInput, KeyError, SystemExit)):
        check_call(call, tmp_path)


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) < 150


MKDOCS = find_spec("mkdocs") and find_spec("material")


def test_the_navigation_names_pages_that_are_there():
    nav = text_of(ROOT / "mkdocs.yml").partition("\nnav:")[2]
    named = re.findall(r": ([\w/]+\.md)$", nav, re.MULTILINE)
    assert len(named) > 15
    assert [name for name in named if not ((ROOT / "docs" / name).is_file() or (ROOT / name).is_file())] == []
    listed = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert listed <= set(named), "a page of docs/ that the navigation lacks"


@pytest.mark.skipif(not MKDOCS, reason="mkdocs-material is not installed: pip install -r requirements-docs.txt")
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    fetched = re.compile(r'<(?:script|img|iframe)[^>]+src="?https?:|<link[^>]+rel="?stylesheet"?[^>]+href="?https?:')
    assert [page.name for page in pages if fetched.search(text_of(page))] == []
    assert (tmp_path / "site" / "search" / "search_index.json").is_file()
    shutil.rmtree(tmp_path / "site")
