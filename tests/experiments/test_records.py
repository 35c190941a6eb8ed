"""The store: states, locks, checksums, other code's records, and the command line over it."""

import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from experiments.job.paths import ROOT
from experiments.records import RecordStore, identity, new_record, sha256, store_of, todays_key, untimed
from experiments.records.__main__ import main, runs
from experiments.records.collect import collect
from experiments.run.runner import Runner
from flowcache.method import VANILLA


@pytest.fixture
def finished(small_job):
    """A job of vanilla with its two videos made."""
    job = small_job("method=vanilla")
    return job, Runner(job).run()


def run(*arguments):
    return main([*arguments[:1], "--output-dir", str(arguments[1]), *arguments[2:]])


def key_of(name):
    """A key of its own for every name."""
    return f"{name.encode().hex():0<16.16}-{'0' * 16}"


def made_by(monkeypatch, code):
    monkeypatch.setattr(identity, "code_hash", lambda modules: code)


def test_a_run_is_one_directory_with_checksums_of_its_files(finished):
    job, (record, _) = finished
    store = store_of(job)
    files = {path.name for path in store.run_path(record.key).iterdir() if not path.name.startswith(".")}
    assert files == {"record.json", "video.mkv", "video.mp4", "trace.parquet"}
    assert record.artifacts == {name: sha256(store.run_path(record.key) / name) for name in record.artifacts}
    assert set(record.artifacts) == files - {"record.json"}


def test_what_is_wanted_is_queued_once_and_never_over_a_record(finished):
    job, made = finished
    wanted = replace(job, seed=job.seed + 1)
    Runner(wanted).queue(wanted.prompts)
    Runner(job).queue(job.prompts)
    assert sorted(record.status for record in store_of(job).all()) == ["finished"] * 2 + ["queued"] * 2
    assert Runner(job).records(job.prompts) == made
    assert Runner(wanted).plan().to_make == job.prompts


def test_nothing_is_queued_over_what_another_is_making(small_job):
    job = small_job("method=vanilla", "num_prompts=1")
    store, record = store_of(job), new_record(job, "vanilla", job.method, job.prompts[0])
    with store.claim(record.key, wait=False):  # before it says that it runs
        store.queue(record)
        assert store.read(record.key) is None
    store.queue(record)
    assert store.read(record.key).status == "queued"


def test_only_one_holds_a_run_and_a_killed_holder_lets_go(tmp_path):
    store = RecordStore(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with store.claim("a", wait=False) as mine:
            assert not mine
        assert store.is_claimed("a")
        assert not store.is_claimed("b")
    finally:
        holder.kill()
        holder.wait()
    with store.claim("a", wait=True) as mine:
        assert mine


HOLD = """
import sys, time
from pathlib import Path
from textwrap import dedent
from experiments.records import RecordStore
with RecordStore(Path(sys.argv[1])).claim("a", wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_what_another_is_making_is_left_alone_and_then_waited_for(small_job):
    job = small_job("method=vanilla")
    busy = job.prompts[0]
    key = new_record(job, "vanilla", job.method, busy).key
    context = multiprocessing.get_context("spawn")
    claimed, let_go = context.Event(), context.Event()
    other = context.Process(target=_claim, args=(job.output_dir, key, claimed, let_go))
    other.start()
    assert claimed.wait(300)
    outcome = Runner(job).drain(job.prompts)
    assert (outcome.busy, outcome.failures) == ((busy,), ())
    assert [record is None for record in Runner(job).records(job.prompts)] == [True, False]
    let_go.set()
    started = time.monotonic()
    assert Runner(job).drain([busy], wait=True).busy == ()
    assert time.monotonic() - started < 300
    other.join()
    assert None not in Runner(job).records(job.prompts)


def test_nobody_waits_for_a_reference_while_there_is_other_work(small_job):
    job, (busy, free) = small_job("latency_pairs=0"), small_job().prompts
    reference = new_record(job, "vanilla", VANILLA, busy).key
    with store_of(job).claim(reference, wait=False):
        outcome = Runner(job).drain(job.prompts)
    assert (outcome.busy, outcome.failures) == ((busy,), ())
    assert [record is None for record in Runner(job).records(job.prompts)] == [True, False]
    assert {(r.prompt, r.status) for r in store_of(job).all()} == {(free, "finished")}
    assert Runner(job).drain([busy], wait=True).busy == ()
    assert None not in Runner(job).records(job.prompts)


def _claim(directory, key, claimed, let_go):
    with RecordStore(directory).claim(key, wait=True):
        claimed.set()
        let_go.wait(300)


def test_the_same_video_twice_differs_only_in_what_is_timed(finished, tmp_path):
    job, made = finished
    again = Runner(replace(job, output_dir=tmp_path / "again")).run()
    assert [untimed(record) for record in again] == [untimed(record) for record in made]
    assert [record.maker for record in made] != [None, None]


def test_other_codes_records_count_only_where_asked_for(finished, monkeypatch):
    job, made = finished
    made_by(monkeypatch, "feedfacefeedface")
    assert Runner(job).plan().to_make == job.prompts
    lenient = replace(job, any_code=True)
    assert Runner(lenient).plan().to_make == ()
    assert Runner(lenient).records(job.prompts) == made
    assert set(collect(lenient)["code"]) == {made[0].code}
    with pytest.raises(Exception, match="no finished records"):
        collect(job)
    (record,) = Runner(job).run(job.prompts[:1])  # today's goes before the other's
    assert record.code == "feedfacefeedface"
    assert record.key == todays_key(made[0])
    assert sorted(collect(lenient)["code"]) == sorted(["feedfacefeedface", made[1].code])


def test_list_tells_every_state(finished, capsys, monkeypatch):
    job, (record, _) = finished
    store = store_of(job)
    for state in ("queued", "running", "failed"):
        store.save(replace(record, key=key_of(state), status=state))
    broken = key_of("broken")
    store.run_path(broken).mkdir()
    store.record_path(broken).write_text("{", encoding="utf-8")
    with store.claim(key_of("running"), wait=False):
        assert run("list", job.output_dir) == 0
    first = capsys.readouterr().out
    states = {key: next(line for line in first.splitlines() if key in line) for key in (key_of("running"), broken)}
    assert "running " in states[key_of("running")]
    assert "damaged" in states[broken]
    assert run("list", job.output_dir, "--state", "interrupted") == 0
    assert key_of("running") in (second := capsys.readouterr().out)
    assert "1 run\n" in second


def test_show_takes_the_beginning_of_a_key(finished, capsys):
    job, (record, _) = finished
    assert run("show", job.output_dir, record.key[:12]) == 0
    state, document = capsys.readouterr().out.split("\n", 1)
    assert state.startswith("finished: ")
    assert json.loads(document)["prompt"] == record.prompt
    assert run("show", job.output_dir, "") == 2
    assert "2 runs have a key" in capsys.readouterr().err


def test_verify_finds_what_changed_and_prune_removes_it(finished, capsys):
    job, (first, second) = finished
    store = store_of(job)
    assert run("verify", job.output_dir) == 0
    with store.video_path(first.key).open("r+b") as video:
        video.seek(100)
        video.write(b"\0\1\2")
    store.trace_path(second.key).unlink()
    assert run("verify", job.output_dir) == 1
    told = capsys.readouterr().out
    assert f"{first.key}: video.mkv is not what was written" in told
    assert f"{second.key}: trace.parquet is missing" in told
    assert run("prune", job.output_dir) == 0
    assert len(list(store.all())) == 2
    assert run("prune", job.output_dir, "--yes") == 0
    assert list(store.all()) == []
    assert Runner(job).plan().to_make == job.prompts


def test_prune_leaves_what_is_whole_or_being_made(finished, capsys, monkeypatch):
    job, (record, _) = finished
    store = store_of(job)
    store.save(replace(record, key=key_of("taken"), status="running"))
    partial = store.run_path(record.key) / ".video.mkv.1.partial"
    partial.write_bytes(b"half")
    aside = store.run_path(record.key) / ".x.partial"  # a video was being made again
    (aside / "runs").mkdir(parents=True)
    with store.claim(key_of("taken"), wait=False), store.claim(record.key, wait=False):
        assert run("prune", job.output_dir, "--yes") == 0
        assert partial.exists()
    with store.claim(key_of("taken"), wait=False):
        assert run("prune", job.output_dir, "--yes") == 0
    assert not partial.exists()
    assert not aside.exists()
    assert len(list(store.all())) == 3
    made_by(monkeypatch, "feedfacefeedface")
    assert run("prune", job.output_dir, "--yes", "--other-code") == 0
    assert list(store.all()) == []


@pytest.fixture
def beside_foreign(finished):
    """A store among whose runs somebody else keeps folders and files."""
    job, made = finished
    runs = store_of(job).run_path("")
    events = runs / "Oct02_12-00-00_host" / "events.out.tfevents.1"
    for path in (events, runs / "mine" / "record.json", runs / "notes.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    (runs / "empty").mkdir()
    return job, made


def files(folder):
    """All of a folder, with the times at which they changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_is_no_run_is_left_alone(beside_foreign, capsys):
    job, _ = beside_foreign
    store, before = store_of(job), files(job.output_dir)
    assert run("list", job.output_dir) == 0
    listed = capsys.readouterr().out
    assert ("damaged" in listed, listed.count("finished")) == (False, 2)
    assert listed.endswith("2 runs\nno runs, and left alone: Oct02_12-00-00_host, empty, mine\n")
    assert run("verify", job.output_dir) == 0
    assert capsys.readouterr().out == "2 finished runs, 0 damaged\n"
    assert run("show", job.output_dir, "mine") == 2
    capsys.readouterr()
    assert run("prune", job.output_dir, "--yes", "--other-code") == 0
    assert capsys.readouterr().out == "0 removed\n"
    assert len(list(store.all())) == len(collect(job)) == 2
    assert files(job.output_dir) == before


def test_an_interrupted_run_is_read_without_a_write(finished, capsys, monkeypatch):
    """As on a read-only mount."""
    job, (record, _) = finished
    store = store_of(job)
    for state in ("running", "queued"):
        store.save(replace(record, key=key_of(state), status=state))
    store.run_path(key_of("broken")).mkdir()
    before = files(job.output_dir)

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "unlink", "write_text"):
        monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    monkeypatch.setattr("experiments.records.store.FileLock", refuse)
    for name in ("list", "verify", "prune"):
        assert run(name, job.output_dir) == (1 if name == "verify" else 0)
    told = capsys.readouterr().out
    assert f"runs/{key_of('running')}: interrupted" in told
    assert run("show", job.output_dir, key_of("running")) == 0
    assert capsys.readouterr().out.startswith("interrupted: ")
    assert collect(job)["method"].tolist() == ["vanilla"] * 2
    assert files(job.output_dir) == before


def test_a_record_of_another_schema_is_told_as_such(finished, capsys):
    job, _ = finished
    store, old = store_of(job), key_of("old")
    path = store.record_path(old)
    path.parent.mkdir()
    path.write_text(json.dumps({"schema_version": 2, "key": old, "prompt": "of old"}), encoding="utf-8")
    assert run("list", job.output_dir) == 0
    listed = capsys.readouterr().out
    assert "other-schema" in next(line for line in listed.splitlines() if old in line)
    assert "other-schema: records of schema 2, by another version of this suite; this one reads schema 3." in listed
    assert "damaged" not in listed
    assert run("list", job.output_dir, "--state", "other-schema") == 0
    assert "1 run\n" in capsys.readouterr().out
    assert run("show", job.output_dir, old) == 0
    state, document = capsys.readouterr().out.split("\n", 1)
    assert state.startswith("other-schema: ")
    assert json.loads(document)["prompt"] == "of old"
    assert run("verify", job.output_dir) == 0
    assert run("prune", job.output_dir, "--yes") == 0
    assert path.is_file()
    capsys.readouterr()
    assert run("prune", job.output_dir, "--yes", "--other-code") == 0
    assert capsys.readouterr().out == f"runs/{old}: schema 2, today's is 3\n1 removed\n"
    assert [each.key for each in store.all()] == sorted(each.key for each in Runner(job).run())


def test_a_record_of_another_schema_that_is_being_made_is_left_to_its_maker(finished):
    job, _ = finished
    store, old = store_of(job), key_of("old")
    store.run_path(old).mkdir()
    store.record_path(old).write_text('{"schema_version": 2}', encoding="utf-8")
    with store.claim(old, wait=False):
        assert {each.state for each in runs(store) if each.key == old} == {"running"}
        assert run("prune", job.output_dir, "--yes", "--other-code") == 0
    assert {each.state for each in runs(store) if each.key == old} == {"other-schema"}


def test_no_records_is_one_clear_line(tmp_path, capsys):
    assert run("list", tmp_path / "nothing") == 2
    assert "there are no records under" in capsys.readouterr().err
