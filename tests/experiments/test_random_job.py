"""Jobs of random weights and of replayed decisions: marked, refused where they mean nothing, exact where they do."""

from __future__ import annotations

import numpy as np
import pytest

from eval.video_io import read_lossless, refuse_random_video
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import RANDOM_MARK, make_job, refuse_random_weights
from experiments.job.replay import read_decisions
from experiments.records import Record, RecordStore, weights_id
from experiments.records.collect import collect
from experiments.run.measure import RANDOM_WEIGHTS
from experiments.run.runner import Runner
from experiments.show.tables import main_table
from experiments.studies import l1_rel, tune
from flowcache.reuse.replay import Replay
from flowcache.trace import Trace

REUSING = ["num_prompts=1", "reuse.threshold=0.5", "reuse.warmup_steps=1"]


@pytest.fixture
def recorded(small_job) -> tuple[Record, str]:
    """A run that reused, and the override that replays it."""
    job = small_job(*REUSING)
    (record,) = Runner(job).run()
    assert record.computed_fraction < 1
    return record, f"replay={RecordStore(job.output_dir).trace_path(record.key)}"


def test_a_replayed_run_is_the_recorded_one(small_job, recorded):
    original, replay = recorded
    job = small_job(*REUSING, replay)
    assert isinstance(job.method.reuse, Replay)
    (record,) = Runner(job).run()
    assert record.method == "flowcache_fast, replayed"
    assert record.key != original.key
    assert (record.flops, record.metrics) == (original.flops, original.metrics)
    store = RecordStore(job.output_dir)
    assert np.array_equal(*(read_lossless(store.video_path(r.key)) for r in (original, record)))
    assert record.sections_s["policy"] < original.sections_s["policy"]


def test_a_recording_of_another_length_is_refused_before_any_work(small_job, recorded):
    job = small_job(*REUSING, recorded[1], "setting.num_frames=72")
    with pytest.raises(BadInput, match="the recorded decisions have 10 rows and this generation 12"):
        Runner(job).run()


def test_random_weights_follow_a_recording_and_are_marked_everywhere(small_job, recorded):
    original, replay = recorded
    job = small_job(*REUSING, replay, "weights=random")
    (record,) = Runner(job).run()
    store = RecordStore(job.output_dir)
    rows = [Trace(list(_entries(store, key))).computed_rows() for key in (original.key, record.key)]
    assert rows[0] == rows[1]
    assert record.latency_s > 0
    assert record.flops < record.baseline_flops
    records = [r for r in store.all() if r.weights.startswith("random")]
    assert len(records) == 2  # the method's and its reference's
    for marked in records:
        assert marked.method.endswith(RANDOM_MARK)
        assert marked.settings["weights"] == "random"
        assert marked.caption is None
        assert all(value is None for value in marked.metrics.values())
        assert marked.notes["psnr"] == marked.notes["caption"] == RANDOM_WEIGHTS
        for path in (store.video_path(marked.key), store.preview_path(marked.key)):
            with pytest.raises(ValueError, match="was made with random weights"):
                refuse_random_video(path)
    refuse_random_video(store.preview_path(original.key))
    frame = collect(job)
    assert len(frame) == 2
    assert frame["method"].str.contains("random weights").all()
    with pytest.raises(BadInput, match="none at a method's default options"):
        main_table(frame, job)


def _entries(store, key):
    import pandas as pd

    from flowcache.trace import TraceEntry

    return (TraceEntry(**entry) for entry in pd.read_parquet(store.trace_path(key)).to_dict("records"))


def test_random_weights_have_no_decisions_and_no_quality(small_job, capsys):
    with pytest.raises(BadInput, match="decides by embedded_latent distances, which random weights make meaningless"):
        small_job("weights=random")
    job = small_job("weights=random", "method=every_k")  # decides by the step's number
    with pytest.raises(BadInput, match="weights=random: quality says nothing of random weights"):
        refuse_random_weights(job, "quality says")
    assert l1_rel.main(["weights=random", "num_prompts=1"]) == 2
    assert "distances say nothing" in capsys.readouterr().err
    assert tune.main(["weights=random", "method=every_k", "share=0.5"]) == 2
    assert "a tuned value means nothing" in capsys.readouterr().err


def test_random_weights_are_identified_by_their_network():
    paper = ["setting=paper", "model=magi"]
    choices = (paper, [*paper, "model.on_meta.size=24B"], ["setting=paper", "model=skyreels"], ["setting=embedded"])
    ids = [weights_id(make_job(compose_config(["weights=random", "method=vanilla", *more]))) for more in choices]
    assert ids[0] == "random, size 4.5B, caption_tokens 100"
    assert len(set(ids)) == len(ids)
    assert all(found.startswith("random, size") for found in ids)


def test_recorded_decisions_are_those_of_the_trace(small_job, recorded):
    assert read_decisions(recorded[1].partition("=")[2]).computed[0] == (0,)
