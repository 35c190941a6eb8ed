"""The checkout's own machinery: what `make` installs and when, and what the packaging files promise.

The Makefile is run for real, in a directory of its own, with a stand-in for Python that writes down how it was called.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.fetched import needs

ROOT = Path(__file__).resolve().parents[1]
ON_TOP = ("requirements-ray.txt", "requirements-docs.txt")

STAND_IN_PYTHON = r"""#!/bin/sh
# venv copies this file to .venv/bin/python, so both roles are played by it.
case "$1 $2" in
    "-c "*) [ ! -e broken-python ]; exit ;;
    "-m venv") rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; rm -f broken-python ;;
esac
echo "$*" >> calls
case "$*" in
    *"install -r"*)
        if [ -e edit-while-installing ]; then
            rm edit-while-installing
            echo "numpy==2.0" >> requirements.txt
            # A real install takes minutes; this one can end within one tick of the file system's clock.
            until [ requirements.txt -nt .venv/requirements.installed.part ]; do touch requirements.txt; done
        fi
        [ ! -e fail-install ] ;;
esac
"""


class Checkout:
    """A directory with the real Makefile and a two-line requirements.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = path / ".venv" / "requirements.installed"
        self.requirements = path / "requirements.txt"
        shutil.copy(ROOT / "Makefile", path)
        self.requirements.write_text("# torch first\ntorch==1.0\nnumpy==1.0\n", encoding="utf-8")
        (path / "python").write_text(STAND_IN_PYTHON, encoding="utf-8")
        (path / "python").chmod(0o755)

    def make(self, target: str, python: str = "./python") -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run one make target; return the finished process and the calls it made to Python."""
        calls = self.path / "calls"
        calls.unlink(missing_ok=True)
        done = self.run("make", "--no-print-directory", target, f"PYTHON={python}")
        return done, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # The tests may themselves run under make, and in CI: their variables are not for this one.
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in {"ARGS", "PYTHON", "CI"}
        }
        env = inherited | variables
        return subprocess.run(
            command, cwd=self.path, env=env, capture_output=True, encoding="utf-8", timeout=300, check=False
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("make") is None:
        pytest.skip("GNU make is not installed")
    return Checkout(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call.split(" install ")[1] for call in calls if " install " in call]


def test_first_make_sets_up_and_the_second_only_runs(checkout: Checkout) -> None:
    done, calls = checkout.make("test")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "-m venv --clear .venv"
    assert installs(calls) == ["torch==1.0", "-r .venv/requirements.installed.part"]
    assert calls[-1].startswith("-m pytest -n auto")
    assert checkout.stamp.read_text(encoding="utf-8") == checkout.requirements.read_text(encoding="utf-8")

    assert [call.split(" -n ")[0] for call in checkout.make("test")[1]] == ["-m pytest"]
    assert checkout.make("run")[1] == ["run.py -m model=magi method=flowcache_fast,flowcast_fast"]


def test_failed_install_leaves_no_stamp_and_is_finished_next_time(checkout: Checkout) -> None:
    (checkout.path / "fail-install").touch()
    done, calls = checkout.make("test")
    assert done.returncode != 0
    assert not checkout.stamp.exists()
    assert not any(call.startswith("-m pytest") for call in calls)

    (checkout.path / "fail-install").unlink()
    done, calls = checkout.make("test")
    assert done.returncode == 0, done.stderr
    assert len(installs(calls)) == 2
    assert not any("venv" in call.split()[1] for call in calls), "a usable .venv is kept"


def test_changed_requirements_are_installed(checkout: Checkout) -> None:
    checkout.make("setup")
    newer = checkout.stamp.stat().st_mtime + 1
    checkout.requirements.write_text("torch==1.1\n", encoding="utf-8")
    os.utime(checkout.requirements, (newer, newer))
    _, calls = checkout.make("setup")
    assert installs(calls)[0] == "torch==1.1"


def test_failed_upgrade_forgets_the_old_stamp(checkout: Checkout) -> None:
    checkout.make("setup")
    newer = checkout.stamp.stat().st_mtime + 1
    os.utime(checkout.requirements, (newer, newer))
    (checkout.path / "fail-install").touch()
    assert checkout.make("setup")[0].returncode != 0
    assert not checkout.stamp.exists()


def test_requirements_edited_during_an_install_are_installed_next_time(checkout: Checkout) -> None:
    (checkout.path / "edit-while-installing").touch()
    checkout.make("setup")
    assert "numpy==2.0" not in checkout.stamp.read_text(encoding="utf-8")
    _, calls = checkout.make("setup")
    assert len(installs(calls)) == 2
    assert "numpy==2.0" in checkout.stamp.read_text(encoding="utf-8")


def test_half_made_venv_is_made_again(checkout: Checkout) -> None:
    checkout.make("setup")
    checkout.stamp.unlink()
    (checkout.path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    done, calls = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "-m venv --clear .venv"


def test_the_site_is_built_strictly_with_what_it_needs(checkout: Checkout) -> None:
    done, calls = checkout.make("docs")
    assert done.returncode == 0, done.stderr
    assert installs(calls)[-1] == "-r requirements-docs.txt"
    assert calls[-1] == "-m mkdocs build --strict"


def test_no_recent_python_is_one_clear_error(checkout: Checkout) -> None:
    (checkout.path / "broken-python").touch()
    done, calls = checkout.make("run", python="./python no-such-python")
    assert done.returncode != 0
    assert calls == []
    assert "error: Python 3.11 or newer" in done.stderr
    assert "./python no-such-python" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (checkout.path / ".venv").exists()


def test_ci_fetches_what_tests_need_and_then_skips_none_of_them(checkout: Checkout, monkeypatch) -> None:
    (checkout.path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout.path / ".ci")
    (checkout.path / "python").write_text(STAND_IN_PYTHON.replace('"$*" >>', '"CI=$CI $*" >>'), encoding="utf-8")
    done = checkout.run(".ci/run", PYTHON="./python")
    assert done.returncode == 0, done.stderr
    calls = (checkout.path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[-4:-2] == ["CI= -m eval.weights lpips", "CI= -m eval.vbench install"]
    assert calls[-2].startswith("CI=true -m pytest")
    assert re.fullmatch("CI= -m pytest .* -p tests.rounding .* tests ?", calls[-1])

    monkeypatch.delenv("CI", raising=False)
    assert needs(False, "it is", "fetch").args == (True,)
    monkeypatch.setenv("CI", "true")
    assert needs(False, "it is", "fetch").args == (False,)


def pins(file: str = "requirements.txt") -> dict[str, Requirement]:
    lines = [line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-c "))]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_requirements_are_exact_pins_with_torch_first_and_no_torchvision() -> None:
    requirements = pins()
    assert next(iter(requirements)) == "torch"
    assert "torchvision" not in requirements
    more = [pin for file in ON_TOP for pin in pins(file).values()]
    for requirement in [*requirements.values(), *more]:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier)), f"{requirement} is no exact pin"
        assert requirement.url is None


@pytest.mark.parametrize("file", ON_TOP)
def test_more_comes_on_top_and_moves_nothing(file: str) -> None:
    assert "-c requirements.txt\n" in (ROOT / file).read_text(encoding="utf-8")
    assert not set(pins()) & set(pins(file))


def test_every_declared_dependency_is_pinned_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [Requirement(r) for group in [project["dependencies"], *extras.values()] for r in group]
    assert {"torch", "diffusers", "pytest"} <= {canonicalize_name(r.name) for r in declared}
    requirements = {**pins("requirements-ray.txt"), **pins()}
    for requirement in declared:
        (pin,) = requirements[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), f"{requirement} against the pin {pin}"
