"""What committed files say of themselves, and what the check of one code version finds, on made-up ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.committed import check
from experiments.committed.check import problems, told_problems
from experiments.committed.ledger import newest_version, read_ledger, write_ledger
from experiments.committed.listed import Result
from experiments.committed.said import Said, said_by
from experiments.job.errors import BadInput
from experiments.records import SCHEMA_VERSION
from tests.experiments.made_results import COUNTED, DRAWN, FILES, NEW, NOTED, OLD, save, save_both, write


@pytest.fixture
def root(tmp_path):
    save_both(tmp_path)
    return tmp_path


def found(root: Path, *results: Result, made: dict | None = None, today: str = NEW) -> list[str]:
    return problems(results or (DRAWN, COUNTED), made or {}, today, root)


@pytest.mark.parametrize("name", FILES)
def test_files_say_which_code_and_machine_made_them_of_how_many_videos(root, name):
    whole = Said(NEW, False, SCHEMA_VERSION, "a CPU (R)", True)
    expected = {".csv": None, ".tex": replace(whole, machine=None, has_n=False)}.get(Path(name).suffix, whole)
    assert said_by(root / name) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", Said(None)),
        ("**A table.** Of before.\n\n| n |\n| --- |\n| 8 |\n", Said(None, has_n=True)),
        (f"**T.** Here (magi; torch 2; version {OLD}). More.", Said(OLD)),
        (f"**T** here (magi; torch 2; version {OLD}). More.", Said(OLD)),  # no machine in its place
        (
            f"**T** here (magi; C; version {OLD} but for 1 of 2 videos, records of format 2). M.",
            Said(OLD, True, 2, "C"),
        ),
    ],
)
def test_what_a_caption_lacks_is_not_made_up(tmp_path, text, said):
    write(tmp_path, "table.md", text)
    assert said_by(tmp_path / "table.md") == said


def test_a_notebook_says_which_code_ran_it(tmp_path):
    for told, version in (({"made_by": f"version {NEW}"}, NEW), ({}, None)):
        write(tmp_path, "a.ipynb", json.dumps({"metadata": told}))
        assert said_by(tmp_path / "a.ipynb") == Said(version)


def test_nothing_is_wrong_with_files_of_one_version_also_of_yesterdays(root):
    assert found(root) == []
    assert found(root, today=OLD) == []
    assert told_problems([], [DRAWN, COUNTED]) == (
        "2 results: every file is there, of one version of the code, and says of what"
    )


def test_a_file_of_another_version_than_the_newest_is_found(root):
    write(root, COUNTED.files[0], f"**Counted.** Nothing was run; version {OLD}.\n")
    assert found(root) == [f"counted: of version {OLD}, the newest is {NEW}: {COUNTED.files[0]}"]
    told = [line for line in FILES if not line.endswith("csv")]
    assert found(root, today=OLD) == [f"a: of version {NEW}, the newest is {OLD}: {', '.join(told)}"]


def test_without_todays_the_version_that_was_finished_last_is_the_newest(root):
    write(root, COUNTED.files[0], f"**Counted.** Nothing was run; version {OLD}.\n")
    later = replace(NOTED, version=OLD, finished="2026-12-02T00:00:00+00:00")
    unfinished = replace(NOTED, finished=None)
    assert newest_version({OLD, NEW}, "2" * 16, {"a": NOTED, "counted": later}) == OLD
    assert newest_version({OLD, NEW}, "2" * 16, {"a": NOTED, "counted": replace(later, finished=None)}) == NEW
    assert newest_version({OLD}, NEW, {}) == OLD
    assert newest_version({OLD, NEW}, "2" * 16, {"a": unfinished}) is None
    first, *others = found(root, today="2" * 16)
    assert first == "files are of 2 versions of the code, and which is the newest is noted nowhere"
    assert [line.partition(": results")[0] for line in others] == [
        f"a: of version {NEW}",
        f"counted: of version {OLD}",
    ]


def test_what_a_file_does_not_say_is_found(root):
    save(root, "a", NEW, has_n=False)
    told = ", ".join(name for name in FILES if name.endswith(("md", "png", "svg")))
    assert found(root) == [f"a: does not say over how many videos (n): {told}"]
    save(root, "a", "of_today")
    (lacking,) = found(root)
    assert lacking.startswith("a: names no version of the code: results/tables/a.md, results/tables/a.tex, results/fig")
    write(
        root, FILES[0], f"**T** here (magi). Version {NEW}; version {NEW}, records of format {SCHEMA_VERSION}.\n| n |"
    )
    assert f"a: names no machine: {FILES[0]}" in found(root)
    (root / FILES[1]).unlink()
    assert f"a: missing: {FILES[1]}" in found(root)


def test_records_that_todays_code_does_not_read_are_found(root):
    save(root, "a", NEW, record_format=SCHEMA_VERSION - 1)
    (wrong,) = found(root)
    assert wrong.startswith(f"a: of records of format {SCHEMA_VERSION - 1}, today's code reads {SCHEMA_VERSION}: ")
    save(root, "a", f"{NEW} but for 3 of 8 videos")
    (wrong,) = found(root)
    assert wrong.startswith("a: in part of other code: results/tables/a.md")
    write(root, FILES[0], f"**T** here (magi; a CPU; version {NEW}). A.\n| n |")
    assert f"a: of records of no format, today's code reads {SCHEMA_VERSION}: {FILES[0]}" in found(root)


def test_a_file_of_no_result_and_one_that_is_no_longer_to_come_are_found(root):
    write(root, "results/tables/b.md", "mine")
    write(root, "notebooks/b.ipynb", "{}")
    for name in ("results/README.md", "results/made.json", "results/gpu/H100/a.json", "results/tables/.b.md.1.partial"):
        write(root, name, "{}")
    missing = Result("c", None, (("tables",),), ("results/tables/c.md",))
    assert found(root, DRAWN, COUNTED, replace(missing, is_to_come=True)) == [
        "no command of results.yaml makes notebooks/b.ipynb",
        "no command of results.yaml makes results/tables/b.md",
    ]
    (root / "notebooks" / "b.ipynb").unlink()
    (root / "results" / "tables" / "b.md").unlink()
    assert found(root, DRAWN, COUNTED, missing) == ["c: missing: results/tables/c.md"]
    (line,) = found(root, replace(DRAWN, is_to_come=True), COUNTED)
    assert line.startswith("a: is here, and results.yaml says that it is to come: move the model to models: ")


def test_a_page_that_is_not_of_todays_tables_is_found(root, monkeypatch):
    page = Result("page", None, (("leaderboard",),), ("results/leaderboard/index.html",))
    write(root, page.files[0], "<p>")
    for made_of, expected in (("<p>", []), ("<q>", [f"page: not made of today's tables: {page.files[0]}"])):
        monkeypatch.setattr(check, "make_page", lambda folder, text=made_of: text)
        assert found(root, DRAWN, COUNTED, page) == expected


def test_the_ledger_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "made.json"
    assert read_ledger(path) == {}
    write_ledger(path, {"b": NOTED, "a": replace(NOTED, finished=None, inputs=None)})
    assert list(read_ledger(path)) == ["a", "b"]
    assert read_ledger(path)["b"] == NOTED
    for damaged in ("{", '{"a": {"seconds": 1}}', '["a"]'):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(BadInput, match=r"is damaged .*; restore it with git, or remove it"):
            read_ledger(path)
