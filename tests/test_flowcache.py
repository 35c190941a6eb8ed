"""What the package offers by name: loaded when asked for, and old names say what they are now."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module

import pytest

import flowcache
from experiments.records.code import modules_of

FOREIGN = ("baselines", "eval", "experiments", "hydra", "omegaconf", "wandb", "pandas", "matplotlib", "diffusers")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", flowcache.__all__)
def test_every_name_is_what_its_module_defines_and_is_offered(name):
    offered = getattr(flowcache, name)
    home = import_module(offered.__module__)
    assert offered.__name__ == name
    assert getattr(home, name) is offered
    assert home.__name__.startswith("flowcache.")
    assert name in dir(flowcache)


@pytest.mark.parametrize("name", flowcache.__all__)
def test_who_reads_the_source_finds_every_name_where_it_is_loaded_from(name):
    """So that a part which takes another from the package counts with it in the hash of its code."""
    assert modules_of(f"flowcache.{name}") == {getattr(flowcache, name).__module__}


def test_all_names_come_by_a_star():
    space: dict[str, object] = {}
    exec("from flowcache import *", space)
    assert set(flowcache.__all__) <= set(space)


def test_the_package_by_itself_loads_no_torch():
    assert "torch" not in modules_after("import flowcache; dir(flowcache)")


def test_all_of_it_loads_nothing_but_the_library():
    loaded = modules_after("from flowcache import *")
    assert {"flowcache", "torch"} <= loaded
    assert loaded.isdisjoint(FOREIGN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FlowCacheConfig", "Method(reuse=Chunkwise(threshold=..., warmup_steps=...))"),
        ("MethodConfig", "Method"),
        ("CompressionConfig", "KvPolicy(select=Joint(...), budget=...)"),
    ],
)
def test_an_old_name_says_what_it_is_now(old, new):
    with pytest.raises(ImportError, match=f"^{re.escape(f'flowcache.{old} is now {new}, of the same package')}$"):
        exec(f"from flowcache import {old}")
    assert set(re.findall(r"[A-Z]\w+", new)) <= set(flowcache.__all__)  # what it names can be imported
    assert old not in dir(flowcache)


def test_a_name_that_never_was_is_no_attribute():
    assert not hasattr(flowcache, "FlowCash")
    with pytest.raises(ImportError, match="cannot import name 'FlowCash' from 'flowcache'"):
        exec("from flowcache import FlowCash")
