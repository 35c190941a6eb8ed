"""The GPU benchmark in a given time: what is begun, what is broken off, what is packed, and what goes on from it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from functools import partial

import pytest

from experiments.benchmarks.gpu.archive import pack, unpack
from experiments.benchmarks.gpu.cases import PAPER, TINY, Case, Work, all_cases
from experiments.benchmarks.gpu.command import BROKEN_OFF, Limits, choose, measure
from experiments.benchmarks.gpu.deadline import RESERVE_S, OutOfTime, broken_off_at
from experiments.benchmarks.gpu.estimate import Estimates
from experiments.benchmarks.gpu.schedules import _count, asked_for, counted, entries
from experiments.benchmarks.gpu.subject import Subject
from experiments.job.errors import BadInput, CasesFailed
from experiments.job.paths import ROOT

MICRO = {"matmul_tflops": 800.0, "matmul_size": 64, "copy_bytes": 2**30, "copy_gb_per_s": 3000.0}


def case(name: str, fixed_s: float = 0.0, sleep_s: float = 0.0, made: list[str] | None = None) -> Case:
    def take() -> dict[str, float]:
        if made is not None:
            made.append(name)
        time.sleep(sleep_s)
        return MICRO

    return Case(name, take, Work(fixed_s=fixed_s))


def limits(seconds: float, archive=None) -> Limits:
    return Limits(time.time() + RESERVE_S + seconds, archive, "python -m experiments.bench gpu deadline_s=9")


def test_what_would_not_end_is_not_begun_and_what_would_still_is(tmp_path, capsys):
    made: list[str] = []
    cases = [case("a_first", made=made), case("b_long", 100.0, made=made), case("c_short", made=made)]
    measure(cases, "cpu", [], tmp_path / "here", limits(20.0, tmp_path / "all.zip"))
    assert made == ["a_first", "c_short"]
    said = capsys.readouterr().out
    assert "* b_long: no time was left (about 103 s)" in said
    assert "To go on: `python -m experiments.bench gpu deadline_s=9`" in said
    names = {"a_first.json", "c_short.json", "summary.md"}
    assert set(zipfile.ZipFile(tmp_path / "all.zip").namelist()) == names

    # On a machine that has only the archive.
    measure(cases, "cpu", [], tmp_path / "there", limits(1000.0, tmp_path / "all.zip"))
    assert made[2:] == ["b_long"]
    said = capsys.readouterr().out
    assert "Missing" not in said
    assert "a_first: there already" in said
    assert set(zipfile.ZipFile(tmp_path / "all.zip").namelist()) == names | {"b_long.json"}


def test_without_a_deadline_everything_is_begun(tmp_path):
    made: list[str] = []
    measure([case("b_long", 1e9, made=made)], "cpu", [], tmp_path)
    assert made == ["b_long"]


def test_what_runs_over_is_broken_off_and_not_begun_again_in_as_little_time(tmp_path, capsys):
    made: list[str] = []
    cases = [case("a_endless", sleep_s=60.0, made=made), case("b_next", made=made)]
    started = time.monotonic()
    measure(cases, "cpu", [], tmp_path, limits(4.0))
    assert 3.5 < time.monotonic() - started < 15
    assert made == ["a_endless"]
    assert "* a_endless: broken off after 4 s (about 6 s)" in capsys.readouterr().out
    assert json.loads((tmp_path / BROKEN_OFF).read_text(encoding="utf-8"))["a_endless"] == pytest.approx(4, abs=1)
    measure(cases, "cpu", [], tmp_path, limits(5.0))  # more than its first estimate, less than it is known to take
    assert made == ["a_endless", "b_next"]


def test_each_finished_case_is_packed_at_once(tmp_path):
    def fail() -> dict:
        assert zipfile.ZipFile(tmp_path / "all.zip").namelist() == ["a_first.json"]
        raise RuntimeError("the card is gone")

    cases = [case("a_first"), Case("b_bad", fail, Work())]
    with pytest.raises(CasesFailed, match="b_bad could not be measured"):
        measure(cases, "cpu", [], tmp_path / "here", Limits(archive=tmp_path / "all.zip"))
    summary = zipfile.ZipFile(tmp_path / "all.zip").read("summary.md").decode()
    assert "* b_bad: the run failed: RuntimeError: the card is gone" in summary


def test_an_archive_gives_back_cases_alone_and_replaces_none(tmp_path):
    (tmp_path / "from").mkdir()
    for name in ("a_x.json", "b_y.json", "summary.md", "z_no.json"):
        (tmp_path / "from" / name).write_text("{}", encoding="utf-8")
    pack(tmp_path / "from", tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip", "a") as archive:
        archive.writestr("../a_outside.json", "{}")
    to = tmp_path / "to"
    to.mkdir()
    (to / "a_x.json").write_text("mine", encoding="utf-8")
    unpack(tmp_path / "all.zip", to)
    assert sorted(path.name for path in to.iterdir()) == ["a_x.json", "b_y.json"]
    assert (to / "a_x.json").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "a_outside.json").exists()
    (tmp_path / "other").write_text("no archive", encoding="utf-8")
    with pytest.raises(BadInput, match="is no zip file of measured cases"):
        unpack(tmp_path / "other", to)


def test_no_except_holds_a_deadline_back():
    def stubborn() -> None:
        while True:
            try:
                time.sleep(1)
            except Exception:
                continue

    with broken_off_at(time.time() + 0.2), pytest.raises(OutOfTime):
        stubborn()
    with broken_off_at(None):
        time.sleep(0.01)
    with broken_off_at(time.time() + 0.05):
        pass
    time.sleep(0.1)  # nothing comes after


def test_cases_are_chosen_by_name_or_part_in_the_order_of_worth():
    cases = list(all_cases("cpu", [], PAPER))
    assert [c.name for c in choose(cases, "e,a,d_magi_vanilla")] == ["a_micro", "d_magi_vanilla", "e_compression"]
    with pytest.raises(BadInput, match="'d_magi_vanila' is no case and no part; did you mean d_magi_vanilla"):
        choose(cases, "a,d_magi_vanila")


def test_estimates_follow_the_ceiling_and_then_what_was_measured():
    cases = {c.name: c for c in all_cases("cuda", [], PAPER)}
    magi, fast = cases["d_magi_vanilla"], cases["d_magi_flowcache_fast"]
    estimates = Estimates("cuda", "NVIDIA H200")
    flops = counted(magi.work.subject.overrides, "vanilla").flops
    assert flops == pytest.approx(80.3e15, rel=0.01)
    first = estimates.seconds(magi)
    assert first == pytest.approx(10 + flops / 395e12)
    assert Estimates("cuda", "another").seconds(magi) > 2 * first
    estimates.learn(cases["a_micro"], 30.0, {**MICRO, "matmul_tflops": 395.0})
    assert estimates.seconds(magi) == pytest.approx(10 + flops / 197.5e12)
    taken = 60.0
    estimates.learn(fast, taken, {})
    rate = counted(fast.work.subject.overrides, "flowcache_fast").flops / (taken - 10)
    assert estimates.seconds(magi) == pytest.approx(10 + 1.15 * flops / rate)
    skyreels = cases["c_skyreels_vanilla"]
    assert estimates.seconds(skyreels) == pytest.approx(
        10 + counted(skyreels.work.subject.overrides, "vanilla").flops / 197.5e12
    )


def test_schedules_of_every_case_are_in_the_file():
    assert entries().keys() == asked_for().keys()


@pytest.mark.parametrize("sizes", [TINY, pytest.param(PAPER, marks=pytest.mark.slow)], ids=["tiny", "paper"])
def test_the_file_holds_what_would_be_counted(sizes):
    works = [c.work for c in all_cases("cpu", [], sizes, official="none") if c.work.subject is not None]
    videos = {(work.subject.overrides, work.method, work.overrides) for work in works}
    for video in sorted(videos)[::4]:
        assert counted(*video) == _count(*video)


def test_how_a_video_is_computed_does_not_change_its_schedule():
    setting = next(iter(asked_for().values()))[0]
    other = Subject((*setting, "compile=true", "attention_backend=math", "threads=2"))
    assert other.counted("vanilla") is counted(setting, "vanilla")


@pytest.mark.slow
def test_a_rehearsal_ends_in_time_and_goes_on(tmp_path):
    """Of small networks on a CPU; a program of its own, as its start and its imports count too."""
    archive = tmp_path / "gpu.zip"
    arguments = ["gpu", "deadline_s=60", "device=cpu", "threads=1", f"archive={archive}"]
    rehearse = partial(
        subprocess.run,
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    measured: list[set[str]] = []
    for place in ("one", "another"):
        started = time.monotonic()
        command = [sys.executable, "-m", "experiments.bench", *arguments, f"output_dir={tmp_path / place}"]
        ran = rehearse(command)
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert time.monotonic() - started < 60
        names = set(zipfile.ZipFile(archive).namelist())
        measured.append({name for name in names if name[1] == "_"})
        assert "summary.md" in names
        if "Missing" in ran.stdout:
            assert "To go on: `python -m experiments.bench gpu deadline_s=60" in ran.stdout
    first, second = measured
    assert "a_micro.json" in first
    assert first <= second
    # What is left after both is what takes longer than there is, and is said.
    assert ("Missing" in ran.stdout) == (len(second) < len(list(all_cases("cpu", [], TINY))))
