"""The main job, killed, out of disk or broken at any point: no finished work is lost, and the next run goes on."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from eval.latency import take
from experiments.job.errors import RunFailed
from experiments.records import RecordStore
from experiments.run.runner import Runner


def test_a_killed_run_leaves_no_record_and_the_next_run_completes_it(small_job, monkeypatch):
    job = small_job()
    store = RecordStore(job.output_dir)
    original, calls = RecordStore.save, []

    def die_on_the_second(self, record):
        calls.append(record)
        if len(calls) == 5:  # each is saved when it is begun, and twice as it is finished
            raise KeyboardInterrupt
        return original(self, record)

    monkeypatch.setattr(RecordStore, "save", die_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        Runner(job).run()
    monkeypatch.undo()
    assert sorted(record.status for record in store.all()) == ["finished", "running"]
    records = Runner(job).run()
    assert [record.status for record in records] == ["finished", "finished"]


def test_a_full_disk_leaves_no_half_written_record(small_job, monkeypatch):
    job = small_job("num_prompts=1")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    Runner(small_job("method=vanilla", "num_prompts=1")).run()
    monkeypatch.setattr("experiments.run.runner.write_mp4", full)
    with pytest.raises(OSError, match="No space left"):
        Runner(job).run()
    assert {record.status for record in RecordStore(job.output_dir).all()} == {"failed", "finished"}
    assert Runner(job).records(job.prompts) == [None]


def test_a_failure_is_recorded_with_its_reason_and_tried_again(small_job, monkeypatch):
    job = small_job("method=vanilla", "num_prompts=1")
    monkeypatch.setattr("eval.latency.generate", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RunFailed, match="RuntimeError: broken"):
        Runner(job).run()
    (record,) = RecordStore(job.output_dir).all()
    assert (record.status, record.error) == ("failed", "RuntimeError: broken")
    monkeypatch.undo()
    (record,) = Runner(job).run()
    assert record.status == "finished"


def broken(*args, **kwargs):
    raise RuntimeError("broken")


@pytest.mark.parametrize("step", ["measure.quality", "write_lossless", "environment.describe"])
def test_a_failure_beside_generation_is_recorded_too(step, small_job, monkeypatch):
    Runner(small_job("method=vanilla", "num_prompts=1")).run()
    job = small_job("num_prompts=1")
    monkeypatch.setattr(f"experiments.run.runner.{step}", broken)
    with pytest.raises(RunFailed, match="RuntimeError: broken"):
        Runner(job).run()
    by_method = {record.method: record for record in RecordStore(job.output_dir).all()}
    assert by_method["vanilla"].status == "finished"
    assert (by_method["flowcache_fast"].status, by_method["flowcache_fast"].error) == ("failed", "RuntimeError: broken")


def test_a_reference_that_fails_fails_what_needs_it(small_job, monkeypatch):
    job = small_job("num_prompts=1")
    monkeypatch.setattr("eval.latency.generate", broken)
    with pytest.raises(RunFailed, match="RuntimeError: broken"):
        Runner(job).run()
    states = {(record.method, record.status) for record in RecordStore(job.output_dir).all()}
    assert states == {("vanilla", "failed"), ("flowcache_fast", "failed")}


def test_a_damaged_reference_is_made_again(small_job):
    (reference,) = Runner(small_job("method=vanilla", "num_prompts=1")).run()
    job, store = small_job("num_prompts=1", "latency_pairs=0"), RecordStore(small_job().output_dir)
    with store.video_path(reference.key).open("r+b") as video:
        video.seek(1000)
        video.write(b"damage")
    (record,) = Runner(job).run()
    assert record.metrics["psnr"] is not None
    assert store.damage(store.find(reference.key)) == []


def test_a_video_that_could_not_be_made_again_is_still_there(small_job, monkeypatch):
    job = small_job("method=vanilla", "num_prompts=1")
    made = Runner(job).run()
    monkeypatch.setattr("eval.latency.generate", broken)
    with pytest.raises(RunFailed):
        Runner(replace(job, force=True)).run()
    assert Runner(job).records(job.prompts) == made
    monkeypatch.undo()
    (again,) = Runner(replace(job, force=True)).run()
    assert again.latency_s != made[0].latency_s


@pytest.fixture
def made_again(small_job, monkeypatch):
    """A job that replaces a finished video by one of other frames, and that video's record."""
    job = small_job("method=vanilla", "num_prompts=1", "metrics=[]")
    (record,) = Runner(job).run()

    def inverted(*arguments, **options):
        taken = take(*arguments, **options)
        return replace(taken, frames=255 - taken.frames)

    monkeypatch.setattr("experiments.run.ranks.take", inverted)
    return replace(job, force=True), record


@pytest.mark.parametrize("num_renames", range(6))
def test_a_kill_while_a_video_is_replaced_leaves_no_record_of_other_files(num_renames, made_again, monkeypatch):
    job, old = made_again
    store, rename, renamed = RecordStore(job.output_dir), os.replace, []

    def rename_until_killed(source, target):
        if Path(target).parent == store.run_path(old.key):
            if len(renamed) == num_renames:
                raise KeyboardInterrupt
            renamed.append(target)
        rename(source, target)

    monkeypatch.setattr("os.replace", rename_until_killed)
    with pytest.raises(KeyboardInterrupt) if num_renames < 5 else nullcontext():  # two of the record, three files
        Runner(job).run()
    monkeypatch.setattr("os.replace", rename)
    found = store.find(old.key)
    if num_renames == 0:
        assert found == old
    elif num_renames < 5:
        assert (found, store.read(old.key).status) == (None, "running")
        (found,) = Runner(replace(job, force=False)).run()
    assert store.damage(found) == []
    assert not list(store.run_path(old.key).glob(".*.partial"))


@pytest.mark.parametrize(
    "step", ["experiments.run.runner.write_mp4", "pandas.DataFrame.to_parquet", "experiments.records.RecordStore.save"]
)
def test_a_full_disk_keeps_the_video_that_was_to_be_replaced(step, made_again, monkeypatch):
    job, old = made_again
    store = RecordStore(job.output_dir)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="No space left"):
        Runner(job).run()
    assert store.find(old.key) == old
    assert store.damage(old) == []
    assert not list(store.run_path(old.key).glob(".*.partial"))


def test_one_failure_does_not_stop_the_others(small_job, monkeypatch):
    job, make = small_job("method=vanilla"), Runner.make

    def fail_on_the_first(self, record, *rest):
        if record.prompt == job.prompts[0]:
            raise RuntimeError("broken")
        return make(self, record, *rest)

    monkeypatch.setattr(Runner, "make", fail_on_the_first)
    with pytest.raises(RunFailed, match="1 of the videos") as caught:
        Runner(job).run()
    assert str(caught.value.__cause__) == "broken"
    assert [record is None for record in Runner(job).records(job.prompts)] == [True, False]


def test_a_damaged_record_counts_as_none(small_job):
    job = small_job("method=vanilla", "num_prompts=1")
    (record,) = Runner(job).run()
    store = RecordStore(job.output_dir)
    store.record_path(record.key).write_text('{"key": "x"', encoding="utf-8")
    assert store.find(record.key) is None
    assert list(store.all()) == []
