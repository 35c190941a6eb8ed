"""What the soak compares: two sweeps alike are the same, and a record lost, changed or damaged is seen."""

import pytest

from experiments.records import RecordStore
from experiments.studies import soak
from tests.experiments.made_records import made


def swept(directory, seconds):
    """A store with every record of the soak's sweep, with videos that are none, and the keys."""
    records = [made(job, prompt, latency_s=seconds) for job in soak._jobs(directory) for prompt in job.prompts]
    store = RecordStore(directory)
    for record in records:
        store.video_path(record.key).write_bytes(record.key.encode())
        store.save(record)
    return store, [record.key for record in records]


def test_the_same_sweep_is_the_same_however_long_it_took(tmp_path):
    keys = [swept(tmp_path / name, seconds)[1] for name, seconds in (("a", 1.0), ("b", 7.0))]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 24
    assert soak.contents(tmp_path / "a") == soak.contents(tmp_path / "b")
    assert soak.contents(tmp_path / "a")["damage"] == []


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda store, record: store.record_path(record.key).unlink(), {"states", "records", "table"}),
        (lambda store, record: store.video_path(record.key).write_bytes(b"cut"), {"damage"}),
        (lambda store, record: store.save(record), {"records", "table"}),
    ],
)
def test_a_difference_is_seen(tmp_path, change, seen):
    store, keys = swept(tmp_path, 1.0)
    before, record = soak.contents(tmp_path), store.read(keys[-1])
    record.flops //= 2
    change(store, record)
    after = soak.contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == seen


def test_a_sweep_is_killed_as_often_as_asked_and_then_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "command", lambda directory: ["sh", "-c", f"echo begun >> {directory}.begun; sleep 30"])
    monkeypatch.setattr(soak, "SHORTEST_LIFE_S", 0.2)
    monkeypatch.setattr(soak, "_finish", lambda directory: None)
    assert soak.kill_often(tmp_path / "runs", 3, 0.3, soak.random.Random(0)) == 3
    assert (tmp_path / "runs.begun").read_text(encoding="utf-8") == "begun\n" * 3
