"""What a machine with a GPU can do without: the library and bench gpu on one that lacks packages they have no use for.

In programs of their own, in which nobody finds those packages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import version

import pytest

from experiments.job.paths import ROOT

WITHOUT = """
import sys

class Lacking:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {lacks} else self.finder.find_spec(name, path, target)

sys.meta_path = [Lacking(finder) for finder in sys.meta_path]
"""
LIBRARY = """
from importlib import import_module
from pathlib import Path
for package in ("flowcache", "baselines"):
    for path in sorted(Path(package).rglob("*.py")):
        import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""
BENCH = """
import tests.test_gpu
from experiments.benchmarks import bench
assert bench.main({arguments}) == 0
"""
UNUSED = {"av", "wandb", "pydantic", "pydantic_core"}


def ran(program: str, lacks: set[str]) -> str:
    code = WITHOUT.replace("{lacks}", repr(lacks)) + program
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_programs_here_do_lack_packages():
    with pytest.raises(AssertionError, match="No module named 'av'"):
        ran("import av", UNUSED)


def test_the_library_needs_none_of_the_experiments_packages():
    ran(LIBRARY, UNUSED | {"hydra", "omegaconf", "pandas", "matplotlib", "rich", "psutil"})


@pytest.mark.slow
def test_bench_gpu_runs_without_what_it_has_no_use_for(tmp_path):
    arguments = ["gpu", "device=cpu", "threads=1", "cases=a_micro,d_magi_flowcache_fast,e", f"output_dir={tmp_path}"]
    said = ran(BENCH.replace("{arguments}", repr(arguments)), UNUSED)
    assert "d_magi_flowcache_fast: measured in" in said
    assert (tmp_path / "gpu" / "cpu" / "e_compression.json").is_file()


def test_the_wheels_to_carry_are_the_versions_that_are_tested_and_few():
    lines = (ROOT / "requirements-gpu-bench.txt").read_text(encoding="utf-8").splitlines()
    wheels = [re.fullmatch(r"(\S+)==(\S+) +# ([\d,]+) bytes.*", line) for line in lines if line and line[0] != "#"]
    assert all(wheels)
    assert sum(int(wheel[3].replace(",", "")) for wheel in wheels) < 10 * 2**20
    for name, number, _ in (wheel.groups() for wheel in wheels):
        if name != "wcwidth":  # an older one, a twentieth as large
            assert version(name) == number
    assert not {wheel[1] for wheel in wheels} & {"av", "wandb", "pydantic"}


def test_a_sparse_checkout_for_a_gpu_is_small_and_leaves_out_what_is_there(tmp_path):
    """At most 60 MB; `bench gpu device=cpu` was run in it from end to end by hand."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    patterns = (ROOT / "experiments" / "benchmarks" / "gpu" / "sparse_checkout.txt").read_text(encoding="utf-8")
    tree = tmp_path / "tree"

    def git(*words: str, **options: str) -> str:
        done = subprocess.run(["git", *words], check=True, capture_output=True, text=True, encoding="utf-8", **options)
        return done.stdout

    git("clone", "--quiet", "--no-checkout", str(ROOT), str(tree))
    git("-C", str(tree), "sparse-checkout", "set", "--no-cone", "--stdin", input=patterns)
    git("-C", str(tree), "checkout", "--quiet")
    kept = [path for path in tree.rglob("*") if path.is_file() and ".git" not in path.relative_to(tree).parts]
    assert sum(path.stat().st_size for path in kept) < 60e6
    assert (tree / "experiments" / "embedded" / "magi" / "config.json").is_file()
    committed = git("-C", str(tree), "ls-files").splitlines()
    left_out = set(committed) - {path.relative_to(tree).as_posix() for path in kept}
    for pattern in patterns.split()[1:]:
        assert any(fnmatch(name, pattern.removeprefix("!/") + "*" * pattern.endswith("/")) for name in left_out), (
            pattern
        )
