"""What runs elsewhere (checks of a push, hooks before a commit, the container, issue forms) names what is here."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pin(name: str) -> str:
    return re.search(rf"^{name}==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]


def problem(command: str) -> str | None:
    """Why a line of a workflow cannot run; it is a target of make or a script of .ci, nothing else."""
    program, *words = command.split()
    if program == "make":
        return None if len(words) == 1 and words[0] in TARGETS else f"make has no target {' '.join(words)}"
    script = ROOT / program
    if not program.startswith(".ci/") or not script.is_file():
        return f"there is no script {program}"
    return None if os.access(script, os.X_OK) else f"{program} cannot be executed"


def test_a_stale_line_is_found():
    assert problem("make lint") is None
    assert problem("make lnit") == "make has no target lnit"
    assert problem(".ci/none") == "there is no script .ci/none"
    assert problem("pytest tests") == "there is no script pytest"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_is_here(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line for step in steps if "run" in step for line in step["run"].splitlines()]
    assert lines
    assert [found for line in lines if (found := problem(line))] == []
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_pushes_are_linted_tested_documented_and_packed_for_every_python_that_is_named():
    jobs = read(ROOT / ".github" / "workflows" / "checks.yml")["jobs"]
    assert {"lint", "test", "docs", "wheel"} <= set(jobs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == named == ["3.11", "3.12", "3.13"]
    assert all(SpecifierSet(project["requires-python"]).contains(version) for version in named)


def test_hooks_before_a_commit_check_what_make_lint_does():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == ["ruff check --force-exclude", "ruff format --force-exclude"]
    for hook in repository["hooks"]:
        assert hook["additional_dependencies"] == [f"ruff=={pin('ruff')}"]
    assert re.findall(r"-m (ruff \w+)", MAKEFILE) == [entry.removesuffix(" --force-exclude") for entry in entries]


def test_the_container_sets_up_and_runs_as_a_checkout_does():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'^CMD \["make", "run"\]$', text, re.MULTILINE)
    assert set(re.findall(r"\bmake (\w+)", re.sub(r"#.*|apt-get.*", "", text))) == {"setup"} <= TARGETS
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (version,) = re.findall(r"^FROM python:([\d.]+)-slim$", text, re.MULTILINE)
    assert f"python{version}" in MAKEFILE
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".venv*", "outputs"} <= set(ignored)
    assert not set(copied) & set(ignored)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_can_be_shown(path):
    form = read(path)
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    kinds = {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert all(item["type"] in kinds and item["attributes"] for item in form["body"])
    ids = [item["id"] for item in form["body"] if item["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    files = re.findall(r"\b((?:docs/)?\w+\.md)\b", path.read_text(encoding="utf-8"))
    assert [name for name in files if not (ROOT / name).is_file() and not (ROOT / "docs" / name).is_file()] == []


def test_the_librarys_floors_are_no_higher_than_an_older_machine_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    older = (ROOT / ".ci" / "older-torch").read_text(encoding="utf-8")
    for name in ("torch", "transformers"):
        version = re.search(rf"\b{name}==(\S+)", older)[1]
        assert floors[name].contains(version), f"{name} {version} of .ci/older-torch is below the floor"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("path", sorted((ROOT / ".ci").iterdir()), ids=lambda path: path.name)
def test_a_script_is_read_by_bash(path):
    assert os.system(f"bash -n {path}") == 0
