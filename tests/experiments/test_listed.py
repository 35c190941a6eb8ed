"""The list of committed results: every file is on it once, and what it says can be run."""

from __future__ import annotations

from collections import Counter

import pytest
from omegaconf import OmegaConf

from experiments.benchmarks.bench import BENCHMARKS
from experiments.committed.check import NOT_MADE, made_files
from experiments.committed.listed import Result, chosen, read_results
from experiments.job.errors import BadInput
from experiments.job.groups import CONF, config_files
from experiments.job.paths import ROOT
from experiments.show.leaderboard import FAMILIES
from flowcache.console import commands
from notebooks import build

RESULTS = read_results()
LABELS = [result.label for result in RESULTS]
NOT_ON_IT = {"vbench_full"}  # which needs weights that are not here


@pytest.fixture
def read(tmp_path):
    def of(text: str) -> list[Result]:
        path = tmp_path / "results.yaml"
        path.write_text(text, encoding="utf-8")
        return read_results(path)

    return of


def test_every_committed_file_is_made_by_exactly_one_result():
    times = Counter(name for result in RESULTS for name in result.files)
    assert set(times.values()) == {1}
    assert [name for name in made_files(ROOT) if name not in times] == []
    assert all((ROOT / path).exists() for path in ("results/README.md", "results/reported/"))
    assert not [name for name in times if name.startswith(NOT_MADE)]


@pytest.mark.parametrize("model", FAMILIES)
def test_latents_are_kept_by_every_sweep_before_one_that_compares_them(model):
    """Sweeps share videos, such as those at default options, and one made without latents has none for the later."""
    sweeps = [dict(w.split("=", 1) for w in each) for r in RESULTS for each in r.sweeps if f"model={model}" in each]
    names = [sweep["experiment"] for sweep in sweeps]
    asks = ["latent_snr" in OmegaConf.load(CONF / "experiment" / f"{name}.yaml").metrics for name in names]
    last = max(place for place, asked in enumerate(asks) if asked)
    assert [name for name, asked in zip(names[:last], asks, strict=False) if not asked] == []


@pytest.mark.parametrize("result", RESULTS, ids=LABELS)
def test_its_files_are_there_unless_they_are_to_come(result):
    there = [(ROOT / name).is_file() for name in result.files]
    if result.is_to_come:
        assert not all(there), f"{result.label} is here: move {result.model} from to_come to models"
    else:
        assert [name for name, is_there in zip(result.files, there, strict=True) if not is_there] == []


def test_every_experiment_and_notebook_is_on_the_list():
    named = {word.partition("=")[2] for r in RESULTS for words in r.commands for word in words if "experiment=" in word}
    experiments = {path.stem for path in config_files("experiment")}
    named |= experiments & {words[1] for r in RESULTS for words in r.commands if words[0] == "bench"}
    assert named == experiments - NOT_ON_IT
    assert {words[1] for r in RESULTS for words in r.commands if words[0] == "notebooks.build"} == set(build.NAMES)
    assert {r.model for r in RESULTS} - {None} == set(FAMILIES)


@pytest.mark.parametrize("result", RESULTS, ids=LABELS)
def test_its_commands_are_there_and_what_it_reads(result):
    for words in result.commands:
        assert words[0] in {*commands(ROOT), "notebooks.build"}
        assert (words[-1] == "publish=true") == (words[0] not in ("sweep", "notebooks.build"))
        assert words[0] != "bench" or words[1] in BENCHMARKS
    before = {file for each in RESULTS[: RESULTS.index(result)] for file in each.files}
    others = [path for path in result.reads if path not in before]
    assert [path for path in others if not (ROOT / path).exists() and f"{path}/" not in NOT_MADE] == []
    assert bool(result.sweeps) != bool(others)  # records, or what else a change of makes it again


def test_an_item_is_a_result_for_each_name_and_model(read):
    results = read("""
        - names: [one, two]
          models: [magi]
          to_come: [wan]
          counted: true
          commands: [sweep experiment=<name> num_prompts=2, "figures show=a,b"]
          reads: [conf/<name>]
          files:
            - results/tables/<model>_<name>
            - results/figures/<name>_<model>
            - results/tables/<model>_<name>_paired.csv
        - {names: [page], commands: [notebooks.build <name>], files: [notebooks/<name>.ipynb]}
    """)
    assert [result.label for result in results] == ["one magi", "one wan", "two magi", "two wan", "page"]
    assert results[3] == Result(
        "two",
        "wan",
        (
            ("sweep", "experiment=two", "num_prompts=2", "model=wan"),
            ("figures", "show=a,b", "model=wan", "publish=true"),
        ),
        (
            *(f"results/tables/wan_two.{ending}" for ending in ("md", "tex", "csv")),
            *(f"results/figures/two_wan.{ending}" for ending in ("png", "svg")),
            "results/tables/wan_two_paired.csv",
        ),
        ("conf/two",),
        counted=True,
        is_to_come=True,
    )
    assert results[3].sweeps == (("experiment=two", "num_prompts=2", "model=wan"),)
    assert results[4] == Result("page", None, (("notebooks.build", "page"),), ("notebooks/page.ipynb",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {names: [a], command: [tables], files: [b.md]}", "'command' is no key of an item; did you mean commands"),
        ("- {names: [a], commands: [tables]}", "lacks files"),
        ("- {names: [a], commands: [tables], files: [<model>.md]}", "nothing is known of <model> in <model>.md"),
        ("- {names: [a, b], commands: [tables], files: [c.md]}", "the file c.md is there twice"),
        (
            "- {names: [a], commands: [tables], files: [c.md]}\n- {names: [a], commands: [tables], files: [d.md]}",
            "the result a is there twice",
        ),
    ],
)
def test_a_list_that_cannot_be_read_says_why(read, text, message):
    with pytest.raises(BadInput, match=message):
        read(text)


def test_results_are_chosen_by_name_and_model():
    labels = [result.label for result in chosen(RESULTS, ["l1_rel", "leaderboard"])]
    assert labels == ["l1_rel magi", "l1_rel skyreels", "leaderboard"]
    of_wan = chosen(RESULTS, model="wan")
    assert {result.model for result in of_wan} == {"wan"}  # nor the page, nor a table of all models
    assert [result.label for result in chosen(RESULTS, ["field"], "wan")] == ["field wan"]
    assert chosen(RESULTS) == RESULTS
    for names, model, message in (
        (["feild"], None, "only=feild: there is no result 'feild'; did you mean field"),
        ([], "magic", "model=magic: there is no result of it; did you mean magi"),
        (["leaderboard"], "magi", "there is no leaderboard of model=magi"),
    ):
        with pytest.raises(BadInput, match=message):
            chosen(RESULTS, names, model)
