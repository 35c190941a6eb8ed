"""All results again, on made-up ones: what is up to date, what is made, what fails, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.committed import all as every
from experiments.committed.inputs import _room, files_below, inputs_of
from experiments.committed.ledger import read_ledger
from experiments.committed.listed import Result
from experiments.committed.make import Maker, Outcome, run_command, told_outcomes
from experiments.committed.plan import State, reason, state_of, time_text, told_state, told_total
from experiments.committed.videos import Videos, videos_of
from experiments.job.paths import ROOT
from experiments.records import SCHEMA_VERSION, RecordStore
from tests.experiments.made_records import made
from tests.experiments.made_results import COUNTED, DRAWN, FILES, NEW, NOTED, OLD, save, save_both, write


@pytest.fixture
def root(tmp_path):
    save_both(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(root):
    """A result with its videos: two settings of an experiment, vanilla's two prompts finished and one of the other."""
    arguments = ("experiment=reuse_curve", "prompts=[a,b]", "num_prompts=2", "metrics=[psnr,ssim]")
    arguments += (f"output_dir={root / 'outputs'}",)
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


def test_what_a_command_is_counts_as_the_room_of_its_module_or_as_the_module():
    names = ("tables", "l1_rel", "bench", "notebooks.build")
    rooms = {name: _room(name).relative_to(ROOT).as_posix() for name in names}
    assert rooms == {
        "tables": "experiments/show",
        "l1_rel": "experiments/studies",
        "bench": "experiments/benchmarks",
        "notebooks.build": "notebooks/build.py",
    }


def test_files_that_say_nothing_to_a_command_are_no_input():
    names = {path.relative_to(ROOT).as_posix() for path in files_below(ROOT / "conf")}
    assert {"conf/config.yaml", "conf/plans/magi_embedded.json"} <= names
    assert not {"conf/results.yaml", "conf/experiment/field.yaml", "conf/training/magi.yaml"} & names
    field = ROOT / "conf" / "experiment" / "field.yaml"
    assert files_below(field) == [field]  # which its own commands name
    assert not [path for path in files_below(ROOT / "experiments" / "show") if path.suffix == ".pyc"]


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
