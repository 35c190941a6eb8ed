"""What ``pip install`` gives: the wheel, built from the source distribution, by itself, runs the README's example."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import flowcache

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; print(build_meta.build_{}('dist'))"


def run(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built as pip does, from what the source distribution holds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "flowcache", source / "flowcache", ignore=shutil.ignore_patterns("__pycache__"))
    (archive,) = run(sys.executable, "-c", BUILD.format("sdist"), cwd=source).splitlines()[-1:]
    shutil.unpack_archive(source / "dist" / archive, source / "unpacked")
    (unpacked,) = (source / "unpacked").iterdir()
    (made,) = run(sys.executable, "-c", BUILD.format("wheel"), cwd=unpacked).splitlines()[-1:]
    return unpacked / "dist" / made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; what it depends on is looked up in this one, to spare gigabytes of downloads."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    own = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", own, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(run(own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return own


@pytest.mark.slow
def test_the_readmes_example_runs_from_the_wheel(python, tmp_path):
    """Of 48 frames."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    here = example.replace('"experiments/embedded/magi"', repr(str(ROOT / "experiments/embedded/magi")))
    here = here.replace("192", "48") + "    print(tuple(frames.shape))\n"
    assert "48" in here
    said = run(python, "-I", "-W", "ignore", "-c", here, cwd=tmp_path)
    assert said.splitlines() == ["(24, 64, 64, 3)"] * 2


@pytest.mark.slow
def test_the_wheel_stands_alone(python, tmp_path):
    code = (
        "import flowcache, importlib.util, sys\n"
        "from importlib.metadata import version\n"
        "from flowcache import named\n"
        "from flowcache.integrations.diffusers import apply_flowcache\n"
        "method = named('flowcast_fast', 'magi', 'embedded')\n"
        "print(flowcache.__version__, version('flowcache'), method.reuse.plan.name)\n"
        "print([name for name in ('baselines', 'eval', 'experiments') if importlib.util.find_spec(name)])\n"
        "print((importlib.resources.files('flowcache') / 'py.typed').is_file(), 'hydra' in sys.modules)\n"
        "print(flowcache.__file__)\n"
    )
    said = run(python, "-I", "-W", "ignore", "-c", code, cwd=tmp_path).splitlines()
    assert said[:3] == [f"{flowcache.__version__} {flowcache.__version__} magi_embedded", "[]", "True False"]
    assert Path(said[3]).is_relative_to(python.parents[1])
