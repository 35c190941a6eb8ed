"""What a KV cache takes is told by what it is for, from a run's record to its table; and KV policies look apart."""

from __future__ import annotations

import pytest

from experiments.records import store_of
from experiments.records.collect import read_trace
from experiments.run.runner import Runner
from experiments.show import long_video
from experiments.show.ablations import settings_frame, table
from experiments.show.kv_memory import kv_text
from experiments.show.results import markdown
from experiments.show.style import colour_and_marker, colours_and_markers


@pytest.mark.parametrize(
    ("by_use", "text"),
    [
        ({}, "0 MiB"),
        ({"entries": 3 * 2**19}, "1.5 MiB"),
        ({"entries": 2**20, "codes": 2**19, "selection": 0}, "1.5 MiB (full precision 1, codes 0.5)"),
        ({"entries": 2**20, "selection": 2**19}, "1.5 MiB (full precision 1, selection 0.5)"),
    ],
)
def test_uses_are_told_where_there_are_several(by_use, text):
    assert kv_text(by_use, 2**20, "MiB") == text


def test_a_run_with_a_store_says_what_it_takes_and_its_trace_what_it_holds(small_job):
    jobs = [small_job("method=vanilla"), small_job("method=vanilla_kv", "kv/store=int4", "setting.num_frames=192")]
    plain, coded = (Runner(job).run()[0] for job in jobs)
    assert plain.kv_bytes_by_use == {"entries": plain.kv_bytes_allocated}
    assert (plain.kv_bits, coded.kv_bits) == (32, 5)  # a scale and a lowest number of 16 bits for 32 channels
    assert set(coded.kv_bytes_by_use) == {"entries", "codes", "scales", "read_buffer"}
    assert sum(coded.kv_bytes_by_use.values()) == coded.kv_bytes_allocated
    held = read_trace(store_of(jobs[1]), coded)["kv_bytes"]
    assert held.max() == coded.kv_bytes_used_peak <= coded.kv_bytes_allocated
    frame, told_by = settings_frame(jobs)
    written = markdown(table(frame, told_by, "KV", "vanilla", "here"))
    assert "| bits a number | KV MiB | KV allocated MiB | of it full precision | of it codes |" in written


def test_methods_of_one_look_get_others_that_nobody_has():
    names = ["vanilla", "vanilla_kv", "vanilla_kv + snapkv", "vanilla_kv + h2o", "flowcache_slow", "flowcache_fast"]
    pairs = colours_and_markers(names)
    assert len(set(pairs.values())) == 5
    assert pairs["flowcache_slow"] == pairs["flowcache_fast"] == colour_and_marker("flowcache_fast")
    assert (pairs["vanilla"], pairs["vanilla_kv"]) == tuple(map(colour_and_marker, names[:2]))


def test_an_experiment_without_long_videos_is_refused(capsys):
    assert long_video.main(["experiment=kv_policies"]) == 2
    assert "experiment kv_policies has no long videos: its file says nothing under by_chunk" in capsys.readouterr().err
