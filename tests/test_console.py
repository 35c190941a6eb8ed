"""``flowcache-bench`` becomes a command of a checkout, and says in one line what is missing where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CALL = "import sys; from flowcache.console import main; sys.exit(main())"


def called(*arguments: str, package: Path = ROOT, cwd: Path = ROOT, isolated: bool = False) -> tuple[int, str, str]:
    """Exit code, output and errors of the command whose package lies in a folder."""
    code = f"import sys; sys.path.insert(0, {str(package)!r}); {CALL}"
    options = ["-I", "-S"] if isolated else []  # -S: no installed packages
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *options, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def library(tmp_path) -> Path:
    """A folder with the package alone, as the wheel has it."""
    folder = tmp_path / "site-packages"
    (folder / "flowcache").mkdir(parents=True)
    for name in ("__init__.py", "console.py"):
        shutil.copy(ROOT / "flowcache" / name, folder / "flowcache")
    return folder


def test_it_is_a_command_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["flowcache-bench"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_without_a_command_every_command_is_named():
    code, said, _ = called()
    assert code == 0
    names = said.splitlines()[-1].partition(": ")[2].split(", ")
    modules = {path.stem for path in (ROOT / "experiments" / "commands").glob("[!_]*.py")}
    assert set(names) == {"run", "records", *modules}
    assert called("--help") == (0, said, "")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["run", "sead=1"], ["run.py", "sead=1"]), (["tables", "sead=1"], ["-m", "experiments.tables", "sead=1"])],
)
def test_it_is_the_command_itself_from_any_folder(arguments, command, tmp_path):
    """With its message and its exit code."""
    plain = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert plain.returncode == 2
    assert "did you mean seed" in plain.stderr
    assert called(*arguments, cwd=tmp_path) == (plain.returncode, plain.stdout, plain.stderr)


def test_a_library_by_itself_works_in_a_checkouts_folders(library):
    code, said, _ = called(package=library, cwd=ROOT / "tests")
    assert (code, said.splitlines()[-1].startswith(f"In {ROOT}: run, ")) == (0, True)


@pytest.mark.parametrize("arguments", [[], ["run"], ["--help"]])
def test_without_a_checkout_one_line_says_so(library, tmp_path, arguments):
    code, said, complaint = called(*arguments, package=library, cwd=tmp_path)
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert complaint.startswith("flowcache-bench: this is the library alone")
    assert "lives in a checkout" in complaint


def test_unknown_commands_and_missing_packages_are_one_line():
    code, said, complaint = called("tabels")
    assert (code, said) == (2, "")
    assert complaint.startswith("flowcache-bench: unknown command 'tabels'; there are run, records, ")
    code, said, complaint = called("run", isolated=True)
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert f"packages are missing here: {sys.executable} -m pip install -r {ROOT / 'requirements.txt'}" in complaint
