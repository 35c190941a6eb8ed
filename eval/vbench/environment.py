"""The environment of the official package: a virtual environment in the cache, made by one command.

It is whole once its stamp is there: a copy of the requirements it was made from, written after everything was
installed and imported. Without the stamp, or with another one, it counts as not there and is made anew.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from eval.atomic import atomic_path
from eval.cache import cache_folder
from eval.errors import MetricUnavailable

INSTALL_COMMAND = "python -m eval.vbench install"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSIDE = Path(__file__).with_name("inside.py")
# The tokenizers that the package's transformers needs has wheels up to this Python.
PYTHON_VERSION = "3.11"

Report = Callable[[str], None]


def folder() -> Path:
    """$FLOWCACHE_CACHE/vbench, by default ~/.cache/flowcache/vbench."""
    return cache_folder() / "vbench"


def python() -> Path:
    return folder() / "bin" / "python"


def site_packages() -> Path:
    return folder() / "lib" / f"python{PYTHON_VERSION}" / "site-packages"


def is_installed() -> bool:
    try:
        return _stamp().read_text(encoding="utf-8") == REQUIREMENTS.read_text(encoding="utf-8") and python().exists()
    except FileNotFoundError:
        return False


def require() -> Path:
    """The environment's interpreter. Raises MetricUnavailable if it is not installed."""
    if not is_installed():
        raise MetricUnavailable(f"VBench has no environment at {folder()}; run `{INSTALL_COMMAND}` (2 GB)")
    return python()


def full_info() -> list[dict[str, Any]]:
    """The benchmark's prompts, from the package itself: 946 entries with `prompt_en` and `dimension`, a list.

    Two prompts stand in two entries each, so that there are 944 different ones.

    Raises:
        MetricUnavailable: the environment is not installed.
    """
    require()
    return json.loads(full_info_path().read_text(encoding="utf-8"))


def full_info_path() -> Path:
    return site_packages() / "vbench" / "VBench_full_info.json"


def package() -> str:
    """The pinned package, such as `vbench==0.1.5`."""
    return next(line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("vbench=="))


def install(report: Report = lambda text: None) -> Path:
    """Make the environment, unless it is whole already, and return its folder.

    One process installs at a time; others wait for it. `report` is told of each step.

    Raises:
        MetricUnavailable: no Python 3.11, or a step failed; the message ends with what the step said last.
    """
    folder().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder().with_suffix(".lock")):
        if is_installed():
            report(f"VBench's environment is there: {folder()}")
            return folder()
        _stamp().unlink(missing_ok=True)
        pip = [str(python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
        pip += ["--no-compile"]  # what is imported is compiled then, a small part of it all
        pins = REQUIREMENTS.read_text(encoding="utf-8")
        first = [line for line in pins.splitlines() if line.startswith(("torch==", "setuptools==", "wheel=="))]
        report(f"1/4 a virtual environment at {folder()}")
        _run([_base_python(), "-m", "venv", "--clear", str(folder())])
        report(f"2/4 {first[0]} (1 GB; more with CUDA)")
        _run([*pip, *first])
        report("3/4 vbench and what it needs (1 GB)")
        # Its source packages need an older setuptools than the newest, which they would be built with apart.
        _run([*pip, "--no-build-isolation", "--requirement", str(REQUIREMENTS)])
        report("4/4 does it import?")
        _run([str(python()), "-I", str(INSIDE)])
        with atomic_path(_stamp()) as partial:
            partial.write_text(pins, encoding="utf-8")
    report(f"VBench's environment is ready: {folder()}")
    return folder()


def last_lines(text: str, number: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-number:])


def _stamp() -> Path:
    return folder() / "requirements.installed"


def _base_python() -> str:
    """An interpreter of the version that the package runs on."""
    if sys.version_info[:2] == tuple(map(int, PYTHON_VERSION.split("."))):
        return sys.executable
    found = shutil.which(f"python{PYTHON_VERSION}")
    if found is None:
        raise MetricUnavailable(
            f"VBench needs Python {PYTHON_VERSION}, this is {sys.version.split()[0]} and there is no "
            f"python{PYTHON_VERSION} on the path; install it"
        )
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise MetricUnavailable(
            f"VBench's environment was not made: {' '.join(command)} ended with {done.returncode}; run "
            f"`{INSTALL_COMMAND}` again once this is mended:\n{last_lines(done.stdout + done.stderr)}"
        )
