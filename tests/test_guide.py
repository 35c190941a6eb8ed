"""docs/methods.md is whole and true: every choice of conf/ is on it, the files that it names are there, and its figures
are those of the tables that it names."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from experiments.job.paths import ROOT
from experiments.show.methods import family, known_methods
from experiments.show.papers import PAPERS, read_paper

TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
TABLES = ROOT / "results" / "tables"
GROUPS = ("method", "reuse", "forecast", "kv", "kv/store")
DOCS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "results" / "README.md"])


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, f"docs/methods.md has no section {heading!r}"
    return found.group(1)


def rows(heading: str) -> list[list[str]]:
    """The cells of a section's table, without its headings."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(cell: str) -> set[str]:
    """Names in backticks; `a_slow`, `_fast` are two of one family."""
    names = re.findall(r"`([^`]+)`", cell)
    return {re.sub(r"_slow$", "", names[0]) + name if name.startswith("_") else name for name in names}


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_conf_is_on_the_page(group):
    choices = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    missing = choices - named("".join(f"`{name}`" for name in re.findall(r"`([^`\n]+)`", TEXT)))
    if group == "method":
        missing -= set().union(*(named(row[0]) for row in rows("What each method does")))
    assert missing == set(), f"docs/methods.md says nothing of conf/{group}: {sorted(missing)}"


def test_every_method_selector_and_store_has_a_row_of_its_own_and_no_cell_is_empty():
    for heading, choices in (
        ("What each method does", known_methods()),
        ("Which keys stay", [path.stem for path in (ROOT / "conf" / "kv").glob("*.yaml")]),
        ("How precisely", [path.stem for path in (ROOT / "conf" / "kv" / "store").glob("*.yaml")]),
    ):
        table = rows(heading)
        names = [name for row in table for name in sorted(named(row[0]))]
        assert sorted(names) == sorted(choices)
        assert all(all(row) for row in table)


def test_every_published_method_has_its_claim_beside_our_figure():
    ours_alone = {"vanilla", "vanilla_causal", "vanilla_kv", "flowcast", "fewer_steps", "x_cache"}
    assert {name for row in rows("Claimed and measured") for name in named(row[0])} == {
        family(name) for name in known_methods()
    } - ours_alone
    assert {"x_cache", "fewer_steps"} <= named(section("Claimed and measured").partition("- Figures")[2])


@pytest.mark.parametrize(("place", "model"), [(0, "magi"), (1, "skyreels"), (2, "wan")])
def test_measured_selectors_are_those_of_the_tables(place, model):
    table = pd.read_csv(TABLES / f"{model}_embedded_kv_policies.csv")
    two = table[table["kv.budget"] == "2 chunks"].set_index("method")["psnr"]
    compared = set()
    for row in rows("Which keys stay"):
        for name, figures in zip(re.findall(r"`(\w+)`", row[0]), row[-1].split("; "), strict=False):
            method = "vanilla_kv" if name == "joint" else f"vanilla_kv + {name}"
            if method in two.index:
                assert figures.split(", ")[place] == f"{two[method]:.1f}", name
                compared.add(name)
    assert len(compared) == 11


def test_claims_of_the_faults_are_in_the_reported_rows():
    told = section("Faults in published tables and code")
    cached = read_paper(PAPERS / "temp_cache.csv").rows.set_index("model")
    for model in ("magi", "skyreels"):
        shown = cached.loc[model].set_index("method").loc["TempCache-Quant"]
        assert f'"{shown["speedup"]}x"' in told
        assert f"{shown['latency_s']} s" in told
    motion = read_paper(PAPERS / "motioncache.csv").rows
    magi = motion[motion["model"] == "magi"].set_index("method")[["pflops", "speedup"]].astype(float)
    efficiency = magi["speedup"] * magi["pflops"] / magi.loc["vanilla", "pflops"]
    assert (efficiency.drop("vanilla") > 1).sum() == 5
    assert "in five of six rows" in told


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, heading = target.partition("#")
        if file.startswith("http"):
            continue
        found = (path.parent / file) if file else path
        assert found.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_files_that_the_page_names_are_there():
    for name in re.findall(r"`((?:tests|conf|results)/[\w./]+\.\w+)`", TEXT):
        assert (ROOT / name).is_file(), name
