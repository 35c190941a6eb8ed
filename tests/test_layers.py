"""Rooms: what may import what, how large a file may be, and that the library stands alone."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("job", "records", "show", "run", "training", "studies", "benchmarks", "committed", "commands")
# Of the library, each may import those before it and its own.
LIBRARY = (
    ("options", "part", "schedule", "clock", "kernels", "trace", "parallel"),
    ("reuse",),
    ("forecast",),
    ("kv",),
    ("method",),
    ("models",),
    ("progress", "video", "checkpoints", "console"),
    ("sampler",),
    ("methods",),
    ("integrations",),
)
MOST_LINES = 400
NETWORKS = ("network.py", "vae.py", "attention.py")


def python_files(*folders: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *folders], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(".py") and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, within functions too; of names imported from a package, the package and each."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_of_the_suite_import_only_from_those_before_them():
    wrong = []
    for path in python_files("experiments"):
        room = path.relative_to(ROOT / "experiments").parts[0]
        for module in imports(path):
            other = module.split(".")[1] if module.startswith("experiments.") else room
            if room in ROOMS and other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_the_librarys_modules_import_only_from_those_before_them():
    places = {name: place for place, names in enumerate(LIBRARY) for name in names}
    wrong = []
    for path in python_files("flowcache"):
        own = path.relative_to(ROOT / "flowcache").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imports(path):
            other = module.split(".")[1] if module.startswith("flowcache.") else own
            if other in places and places[other] > places[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "strangers"),
    [
        ("flowcache", ("experiments", "eval", "baselines", "hydra", "omegaconf", "wandb", "pandas")),
        ("baselines", ("experiments", "eval", "flowcache.models", "hydra")),
        ("eval", ("experiments", "baselines", "hydra")),
    ],
)
def test_what_is_below_knows_nothing_of_what_is_above(folder, strangers):
    for path in python_files(folder):
        for module in imports(path):
            assert not any(module == stranger or module.startswith(f"{stranger}.") for stranger in strangers), (
                f"{path.relative_to(ROOT)} imports {module}"
            )


def test_no_file_is_too_long_to_read_but_networks():
    for path in python_files("flowcache", "baselines", "eval", "experiments", "run.py"):
        if path.name not in NETWORKS:
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path.relative_to(ROOT)


def test_the_suites_top_is_its_rooms():
    listed = subprocess.run(
        ["git", "ls-files", "experiments"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    top = {Path(name).parts[1] for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert len(top) <= 15
    assert top == {"__init__.py", *ROOMS, "embedded", "prompts"}


def test_commands_are_thin():
    for path in set(python_files("experiments/commands")) - {ROOT / "experiments/commands/__init__.py"}:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 15, path.name


def test_no_module_knows_a_model_by_name_outside_its_folder():
    for path in python_files("flowcache", "baselines"):
        folders = path.relative_to(ROOT).parts
        names = {"magi", "skyreels", "wan"} - set(folders)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = [c.value for c in [node.left, *node.comparators] if isinstance(c, ast.Constant)]
                assert not names & {v for v in values if isinstance(v, str)}, path.relative_to(ROOT)
