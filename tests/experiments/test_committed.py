"""All results again, on made-up ones: what is up to date, what is made, and what the check finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments.committed import all as every
from experiments.committed import check
from experiments.committed.check import problems, told_problems
from experiments.committed.inputs import inputs_of
from experiments.committed.ledger import Made, newest_version, read_ledger, write_ledger
from experiments.committed.listed import Result
from experiments.committed.make import Maker, Outcome, run_command, told_outcomes
from experiments.committed.plan import State, reason, state_of, time_text, told_state, told_total
from experiments.committed.said import Said, said_by
from experiments.committed.videos import Videos, videos_of
from experiments.job.errors import BadInput
from experiments.records import SCHEMA_VERSION, RecordStore
from experiments.show.results import Column, Destination, Table
from tests.experiments.made_records import made

OLD, NEW = "0" * 16, "1" * 16
SOURCE = "magi, embedded, n = 8 prompts; a CPU (R); torch 2; version {}, records of format {}; weights w, code c, d"
FILES = (
    *(f"results/tables/a.{ending}" for ending in ("md", "tex", "csv")),
    *(f"results/figures/a.{ending}" for ending in ("png", "svg")),
)
DRAWN = Result("a", None, (("sweep", "experiment=ablation_lambda"), ("ablations", "publish=true")), FILES)
COUNTED = Result("counted", None, (("paper_flops",),), ("results/tables/counted.md",), counted=True)
NOTED = Made(NEW, "a CPU", 60.0, 5.0, "2026-12-01T10:00:00+00:00", "inputs")


def save(root: Path, stem: str, version: str, record_format: int = SCHEMA_VERSION, has_n: bool = True) -> None:
    """A table and a figure as the commands write them."""
    source = SOURCE.format(version, record_format)
    column = Column("n" if has_n else "m", "value")
    text = f"Measured here ({source.replace(', n = 8 prompts', '')}): of few. More."
    to, figure = Destination(root / "results"), plt.figure(figsize=(1, 1), dpi=20)
    to.save_table(stem, Table("A table.", text, (column,), pd.DataFrame({"value": [8]})))
    to.save_figure(figure, stem, source if has_n else source.replace(", n = 8 prompts", ""))


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """With all files of a result that was drawn and of one that was counted, of one version."""
    save(tmp_path, "a", NEW)
    write(tmp_path, COUNTED.files[0], f"**Counted.** Nothing was run; version {NEW}.\n")
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


@pytest.fixture
def drawn(root):
    """A result with its videos: two settings of an experiment, vanilla's two prompts finished and one of the other."""
    arguments = ("experiment=reuse_curve", "prompts=[a,b]", "num_prompts=2", f"output_dir={root / 'outputs'}")
    result = replace(DRAWN, commands=(("sweep", *arguments), ("figures", "publish=true")))
    whole = videos_of(result)
    jobs = tuple(replace(job, workers=2) for job in whole.jobs[0][:2])
    kept = [(key, job) for key, job in whole.keys.items() if any(job.method == each.method for each in jobs)]
    videos = Videos((jobs,), dict(kept))
    vanilla, fast = jobs
    assert (vanilla.is_baseline, fast.is_baseline, len(videos.keys)) == (True, False, 4)
    for prompt, seconds in zip(vanilla.prompts, (6.0, 8.0), strict=True):
        made(vanilla, prompt, latency_s=seconds)
    made(fast, "a", 0.5, metrics={"psnr": 40.0, "ssim": 0.9}, latency_s=3.0)
    return result, videos


def finish(videos: Videos, **metrics: float) -> None:
    metrics = metrics or {"psnr": 40.0, "ssim": 0.9}
    made(videos.jobs[0][1], "b", 0.5, metrics=metrics, latency_s=3.0)


def test_videos_of_a_result_are_those_of_all_its_sweeps(drawn):
    result, videos = drawn
    whole = videos_of(result, ["seed=5"])
    assert {job.seed for job in whole.jobs[0]} == {5}
    assert len(whole.keys) == 2 * len(whole.jobs[0])
    assert videos_of(COUNTED) == Videos()
    assert sorted(videos.finished()) == sorted(record.key for record in RecordStore(whole.jobs[0][0].output_dir).all())


def test_what_is_left_is_told_with_what_it_is_estimated_from(drawn, root):
    result, videos = drawn
    state = state_of(result, videos, None, NEW, root)
    assert (state.num_finished, state.why, state.left_s) == (3, "1 video to make", 3.0 / 2)
    assert state.basis == "as measured; its other commands were never timed"
    noted = state_of(result, videos, replace(NOTED, drawn_s=10.0), NEW, root)
    assert (noted.left_s, noted.basis) == (11.5, "as measured; its other commands as last time")
    seen = {key for key in videos.keys if key not in videos.finished()}
    assert state_of(result, videos, None, NEW, root, seen).left_s == 0  # another result makes it
    assert told_state(state).splitlines() == [
        "a: to make: 1 video to make; 4 videos, 3 finished by today's code; about 2 s (as measured; its other commands "
        "were never timed)",
        f"    python -m experiments.{' '.join(result.commands[0])}",
        "    python -m experiments.figures publish=true",
        "    results/tables/a.md, .tex, .csv",
        "    results/figures/a.png, .svg",
    ]
    never = state_of(COUNTED, Videos(), None, NEW, root)
    assert (never.left_s, told_state(never).splitlines()[0]) == (
        None,
        "counted: to make: from what its files were made is noted nowhere; it was never timed",
    )
    assert told_total([state, never, replace(never, why=None)]) == (
        "3 results, 1 up to date; about 2 s left, without what was never timed: counted"
    )


def test_a_result_is_up_to_date_until_something_that_it_is_made_from_changes(drawn, root, monkeypatch):
    result, videos = drawn
    finish(videos)
    noted = replace(NOTED, inputs=inputs_of(result, videos))
    assert reason(result, videos, noted, NEW, root) is None
    assert state_of(result, videos, noted, NEW, root).left_s == 0
    assert reason(result, videos, None, NEW, root) == "from what its files were made is noted nowhere"
    assert reason(result, videos, noted, OLD, root) == f"{FILES[0]} is of version {NEW} of the code"
    for changed in (
        replace(result, commands=(*result.commands, ("tables",))),
        replace(result, reads=("conf/setting",)),
    ):
        assert reason(changed, videos, noted, NEW, root) == "what it is made from changed"
    finish(videos, psnr=41.0, ssim=0.9)
    assert reason(result, videos, noted, NEW, root) == "what it is made from changed"
    finish(videos, psnr=41.0)  # without one of its metrics
    record = next(r for r in videos.finished().values() if r.prompt == "b" and r.method != "vanilla")
    record.metrics_code.pop("ssim")
    RecordStore(videos.jobs[0][0].output_dir).save(record)
    assert reason(result, videos, noted, NEW, root) == "1 video to measure or to time"
    save(root, "a", f"{NEW} but for 1 of 2 videos")
    assert reason(result, videos, noted, NEW, root) == f"{FILES[0]} is in part of other code"
    save(root, "a", NEW, SCHEMA_VERSION - 1)
    assert reason(result, videos, noted, NEW, root).endswith(
        f"format {SCHEMA_VERSION - 1}, today's is {SCHEMA_VERSION}"
    )
    (root / FILES[0]).unlink()
    (root / FILES[3]).unlink()
    assert reason(result, videos, noted, NEW, root) == f"{FILES[0]} is missing, and 1 more"


class Commands:
    """A stand-in for what runs commands: tables write their file, of a version, and one that is told to fails."""

    def __init__(self, root: Path, version: str = NEW) -> None:
        self.root, self.version, self.ran, self.fails = root, version, [], {}

    def __call__(self, words) -> int:
        self.ran.append(" ".join(words))
        outcome = self.fails.get(words[0], 0)
        if isinstance(outcome, BaseException):
            raise outcome
        if not outcome and words[0] == "table":
            write(self.root, f"results/tables/{words[1]}.md", f"**T.** Nothing was run; version {self.version}.\n")
        return outcome


def listed(*names: str) -> list[State]:
    """Results of one table each, of which nothing is known."""
    results = [Result(n, None, (("table", n), ("report", n)), (f"results/tables/{n}.md",)) for n in names]
    return [State(result, Videos(), 0, "new") for result in results]


@pytest.fixture
def maker(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.committed.inputs._room", lambda command: Path(__file__).parent / "commands.py")
    return Maker(tmp_path, tmp_path / "made.json", NEW, "a CPU, 2 cores", Commands(tmp_path))


def test_results_are_made_in_order_and_skipped_when_they_are_up_to_date(maker, capsys):
    states = listed("b", "a")
    outcomes = maker.make(states)
    assert maker.run.ran == ["table b", "report b", "table a", "report a"]
    assert [(each.result.name, each.error) for each in outcomes] == [("b", None), ("a", None)]
    noted = read_ledger(maker.ledger)
    assert {(each.version, each.machine) for each in noted.values()} == {(NEW, "a CPU, 2 cores")}
    assert all(each.finished and each.drawn_s is not None and each.inputs for each in noted.values())
    assert (
        "[1 of 2] b: to make: results/tables/b.md is missing\n$ python -m experiments.table b"
        in capsys.readouterr().out
    )
    again = maker.make([*states, *listed("c")])
    assert maker.run.ran[4:] == ["table c", "report c"]
    assert [each.seconds is None for each in again] == [True, True, False]
    assert "[1 of 3] b: up to date, skipped" in capsys.readouterr().out
    assert read_ledger(maker.ledger)["b"] == noted["b"]


def test_a_failing_result_keeps_no_other_from_being_made_and_goes_on_later(maker, capsys):
    maker.run.fails = {"report": 2}
    outcomes = maker.make(listed("a", "b"))
    assert maker.run.ran == ["table a", "report a", "table b", "report b"]
    failed = "failed: python -m experiments.report {} ended with exit code 2"
    assert [each.error for each in outcomes] == [failed.format("a"), failed.format("b")]
    assert read_ledger(maker.ledger)["a"].finished is None
    told = told_outcomes(outcomes, "python -m experiments.all only=a,b").splitlines()
    assert told[-3:] == [
        f"a {failed.format('a')}",
        f"b {failed.format('b')}",
        "2 of 2 results failed; what is made is kept, and python -m experiments.all only=a,b goes on from it",
    ]
    maker.run.fails = {}
    assert [each.error for each in maker.make(listed("a"))] == [None]
    assert read_ledger(maker.ledger)["a"].finished is not None


def test_commands_that_make_nothing_or_are_of_other_code_have_failed(maker):
    maker.run.version = OLD
    (outcome,) = maker.make(listed("a"))
    assert outcome.error == f"failed: its commands ended well, but results/tables/a.md is of version {OLD} of the code"
    (maker.root / "results" / "tables" / "a.md").unlink()
    silent = Maker(maker.root, maker.ledger, NEW, "a CPU", lambda words: 0)
    (outcome,) = silent.make(listed("a"))
    assert outcome.error == "failed: its commands ended well, but results/tables/a.md is missing"


def test_seconds_add_up_over_what_interrupted_it_and_start_anew_with_other_code(maker, monkeypatch):
    monkeypatch.setattr("experiments.committed.make.time.monotonic", iter(range(1000)).__next__)
    maker.run.fails = {"report": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        maker.make(listed("a"))
    first = read_ledger(maker.ledger)["a"]
    assert first.seconds > 0
    assert (first.finished, first.drawn_s, first.inputs) == (None, None, None)
    maker.run.fails = {}
    (outcome,) = maker.make(listed("a"))
    second = read_ledger(maker.ledger)["a"]
    assert second.seconds == first.seconds + outcome.seconds
    assert second.drawn_s == 2.0  # of two commands, a tick each
    newer = Maker(maker.root, maker.ledger, OLD, "another CPU", Commands(maker.root, OLD))
    (outcome,) = newer.make(listed("a"))
    assert (read_ledger(maker.ledger)["a"].seconds, read_ledger(maker.ledger)["a"].machine) == (
        outcome.seconds,
        "another CPU",
    )


def test_it_ends_with_how_long_each_took():
    outcomes = [Outcome(DRAWN, 7200.0), Outcome(COUNTED, 40.0), Outcome(replace(COUNTED, name="old"), None)]
    assert told_outcomes(outcomes, "again").splitlines() == [
        "   2.0 h  a",
        "    40 s  counted",
        "   2.0 h  in all; 1 result up to date before",
    ]
    assert [time_text(seconds) for seconds in (99, 150, 5999, 36000)] == ["99 s", "2 min", "100 min", "10.0 h"]


def test_a_command_runs_in_a_process_of_its_own_and_tells_its_exit_code(tmp_path, capfd):
    assert run_command(("leaderboard", "--help")) == 0
    assert "One page of all results" in capfd.readouterr().out
    assert run_command(("leaderboard", "pubish=true"), [f"output_dir={tmp_path}"]) == 2
    assert "pubish=true is no option=value of this command" in capfd.readouterr().err
    assert run_command(("notebooks.build", "none"), ["output_dir=x"]) != 0
    assert "there is no notebook 'none'" in capfd.readouterr().err


@pytest.fixture
def command(root, monkeypatch, capsys):
    """``main`` on the made-up results, which are of today's code; what it said is returned with its exit code."""
    for name, value in {
        "ROOT": root,
        "LEDGER": root / "made.json",
        "read_results": lambda: [DRAWN, COUNTED],
        "code_version": lambda: NEW,
        "videos_of": lambda result, extra: Videos(),
        "run_command": lambda words, extra: Commands(root)(words),
    }.items():
        monkeypatch.setattr(every, name, value)

    def main(*arguments: str) -> tuple[int, str, str]:
        code = every.main([*arguments])
        return code, *capsys.readouterr()

    return main


def test_the_check_fails_with_a_list(command, root):
    assert command("check=true") == (
        0,
        "2 results: every file is there, of one version of the code, and says of what\n",
        "",
    )
    write(root, COUNTED.files[0], "**Counted.**\n")
    code, said, wrong = command("check=true")
    assert (code, said) == (1, "")
    assert wrong == (
        f"counted: names no version of the code: {COUNTED.files[0]}\n"
        "1 problem; python -m experiments.all makes what is not up to date\n"
    )


def test_the_plan_makes_nothing(command, root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    code, said, _ = command("plan=true", "only=counted")
    assert code == 0
    assert said.splitlines() == [
        "counted: to make: from what its files were made is noted nowhere; it was never timed",
        "    python -m experiments.paper_flops",
        "    results/tables/counted.md",
        "1 result, 0 up to date; about 0 s left, without what was never timed: counted",
        "plan=true: nothing was made; the same command without it does the work",
    ]
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_command_makes_what_is_left_and_says_so(command, root):
    code, said, _ = command(f"output_dir={root / 'outputs'}")
    assert code == 0
    assert "[1 of 2] a: made in 0 s" in said
    assert said.endswith("in all; 0 results up to date before\n")
    code, said, _ = command(f"output_dir={root / 'outputs'}")
    assert (code, said.splitlines()[-1]) == (0, "     0 s  in all; 2 results up to date before")
    (root / FILES[0]).unlink()
    code, said, _ = command("only=a")
    assert code == 1
    assert f"a failed: its commands ended well, but {FILES[0]} is missing" in said
    assert said.endswith(
        "1 of 1 result failed; what is made is kept, and python -m experiments.all only=a goes on from it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan=yes"], "plan=yes must be true or false"),
        (["num_prompts=1"], "num_prompts=1 is no option=value of this command; there are check, model, only"),
        (["only"], "only is no option=value of this command"),
        (["only="], "only= is no option=value of this command"),
        (["only=b"], "only=b: there is no result 'b'"),
        (["check=true", "only=a"], "check=true looks at all that is committed; give it alone"),
    ],
)
def test_bad_options_are_one_line(command, arguments, message):
    code, said, wrong = command(*arguments)
    assert (code, said) == (2, "")
    assert wrong.startswith(f"all: {message}")
    assert len(wrong.splitlines()) == 1
