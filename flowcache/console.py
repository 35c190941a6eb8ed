"""``flowcache-bench [run | tables | sweep | ...] [key=value ...]``: the suite's commands by one name, from anywhere.

``run`` is ``python run.py``, any other ``python -m experiments.<name>``, of the checkout that this package lies in, or
else of the one that the current folder is in. Exit codes are the command's; 2 if it cannot be started.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_NO_CHECKOUT = (
    "this is the library alone: the suite (conf, experiments, baselines, eval) lives in a checkout; call this in one's "
    "folder, or install it from there: pip install -e '.[eval,experiments,skyreels]'"
)


def checkout(folders: Iterable[Path]) -> Path | None:
    """The first of the folders that is a checkout of the suite."""
    return next((folder for folder in folders if (folder / "run.py").is_file() and (folder / "conf").is_dir()), None)


def commands(root: Path) -> dict[str, list[str]]:
    """What Python is given for each command of a checkout, by its name."""
    modules = sorted(path.stem for path in (root / "experiments" / "commands").glob("[!_]*.py"))
    return {
        "run": [str(root / "run.py")],
        "records": ["-m", "experiments.records"],
        **{name: ["-m", f"experiments.{name}"] for name in modules},
    }


def main() -> int:
    """Become the command that the first argument names; returns an exit code if that cannot be."""
    here = Path.cwd()
    root = checkout([Path(__file__).parents[1], here, *here.parents])
    if root is None:
        return _refuse(_NO_CHECKOUT)
    known, (name, *arguments) = commands(root), sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(f"{inspect.cleandoc(__doc__).replace('``', '`')}\n\nIn {root}: {', '.join(known)}")
        return 0
    if name not in known:
        return _refuse(f"unknown command {name!r}; there are {', '.join(known)}")
    if find_spec("hydra") is None:
        requirements = root / "requirements.txt"
        return _refuse(f"the suite's packages are missing here: {sys.executable} -m pip install -r {requirements}")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    os.execve(sys.executable, [sys.executable, *known[name], *arguments], {**os.environ, "PYTHONPATH": path})


def _refuse(message: str) -> int:
    print(f"flowcache-bench: {message}", file=sys.stderr)
    return 2
