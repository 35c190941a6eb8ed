"""Benchmarks: bad requests are refused, and what the kv benchmark compares against really is the same choice."""

from __future__ import annotations

import re

import pytest
import torch

from experiments import bench
from experiments.benchmarks import kv
from experiments.benchmarks.memory import PeakBytes
from flowcache.kv_score import CompressionConfig, select_keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a benchmark first; there are kv, row"),
        (["rows"], "did you mean row"),
        (["row", "lengths=24"], "no key 'lengths'"),
        (["kv", "lengths"], "'lengths' is not of the form key=value"),
        (["kv", "lengths=2000"], "2000 keys are not 24 whole frames; choose multiples of 24"),
        (["kv", "lengths=24,x"], "lengths=x must be a whole number of at least 1"),
        (["kv", "runs=0"], "runs=0 must be a whole number of at least 1"),
        (["kv", "queries=layer"], "'layer' is unknown; choose among token, frame, chunk"),
        (["kv", "threads=0"], "at least 1"),
    ],
)
def test_bad_requests_exit_2_with_one_line(arguments, message, capsys):
    assert bench.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("num_queries", [5, 24])
def test_the_whole_matrix_form_keeps_the_same_keys_at_the_memory_foretold(num_queries):
    random = torch.Generator().manual_seed(0)
    query = torch.randn(kv.NUM_HEADS, num_queries, 32, generator=random)
    key = torch.randn(kv.NUM_GROUPS, 480, 32, generator=random)
    config = CompressionConfig(query_granularity=num_queries)
    with PeakBytes() as memory:
        kept = kv.whole_matrix(query, key, 360, config)
    assert torch.equal(kept, select_keys(query, key, 360, config, 20, 120).indices)
    foretold = kv.whole_matrix_bytes(num_queries, 480)
    assert foretold <= memory.peak <= 1.2 * foretold


def test_kv_prints_both_sides_of_every_case(capsys):
    assert bench.main(["kv", "lengths=240,480", "queries=token,chunk", "runs=2", "threads=1"]) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[:3] for line in lines] == [
        ["240", "token", "50"],
        ["240", "chunk", "60"],
        ["480", "token", "50"],
        ["480", "chunk", "120"],
    ]
    assert all(re.search(r"\d s \(.*\), \d+ MiB .*\d s \(.*\), \d+ MiB +[\d.]+x +100.0000%$", line) for line in lines)


def test_kv_says_what_the_whole_matrix_would_need_where_it_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(kv, "_free_bytes", lambda device: 2**20)
    assert bench.main(["kv", "lengths=240", "queries=token", "runs=1", "threads=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("not run: needs 0.0 GiB of 0.0 free")
