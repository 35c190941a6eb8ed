"""Benchmarks: bad requests are refused, and what the kv benchmark compares against really is the same choice."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from eval.peak_memory import PeakBytes
from experiments.benchmarks import bench, kv
from experiments.benchmarks.products import Products
from experiments.run.runner import Runner
from flowcache.kv.select.joint import Joint
from flowcache.method import VANILLA
from flowcache.models.magi.flops import FlopCounter
from tests.experiments.conf_parts import CHOICES
from tests.experiments.conftest import SMALL
from tests.kv.test_selectors import NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a benchmark first; there are efficiency, flops, gpu, kv, latency, predict, products, row"),
        (["rows"], "did you mean row"),
        (["row", "lengths=24"], "no key 'lengths'"),
        (["kv", "lengths"], "'lengths' is not of the form key=value"),
        (["kv", "lengths=2000"], "2000 keys are not 24 whole frames; choose multiples of 24"),
        (["kv", "lengths=24,x"], "lengths=x must be a whole number of at least 1"),
        (["kv", "runs=0"], "runs=0 must be a whole number of at least 1"),
        (["kv", "queries=layer"], "'layer' is unknown; choose among token, frame, chunk"),
        (["kv", "show=store"], "'store' is unknown; did you mean stores"),
        (["kv", "threads=0"], "at least 1"),
        (["latency", "latency_repeats=0"], "latency_repeats=0 must be a whole number of at least 1"),
        (["latency", "setting.num_steps=62"], "choose a multiple of 4"),
        (["flops", "setting.num_frames=50"], "try num_frames=48"),
        (["products", "products_repeats=x"], "products_repeats=x must be a whole number of at least 1"),
        (["products", "method=vanilla"], "vanilla is what others are compared with; choose another method"),
        (["efficiency", "efficiency_repeats=0"], "efficiency_repeats=0 must be a whole number of at least 1"),
        (["efficiency", "method=scope"], "experiment efficiency names the methods that it compares"),
        (["flops", "latency_repeats=2"], "no key 'latency_repeats'"),
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
    joint = Joint(query_granularity=num_queries)
    with PeakBytes() as memory:
        kept = kv.whole_matrix(query, key, 360, joint)
    score = joint.scores(query, key, 120)
    dropped = score.scatter(-1, kept, -math.inf).amax(-1)
    assert (score.gather(-1, kept).amin(-1) >= dropped - 1e-8).all()  # near ties may fall either way
    foretold = kv.whole_matrix_bytes(num_queries, 480)
    assert foretold <= memory.peak <= 1.2 * foretold


def test_kv_prints_both_sides_of_every_case(capsys):
    long = [*REUSING, "setting.num_frames=96"]
    assert bench.main(["kv", "lengths=240,480", "queries=token,chunk", "runs=2", "show=whole_matrix,video", *long]) == 0
    *lines, video = capsys.readouterr().out.splitlines()[3:]
    share = re.search(r"keeping 1 chunk: compressing takes ([\d.]+)% \(.*\) of [\d.]+ s a video$", video)
    assert 0 < float(share[1]) < 100
    assert [line.split()[:3] for line in lines] == [
        ["240", "token", "50"],
        ["240", "chunk", "60"],
        ["480", "token", "50"],
        ["480", "chunk", "120"],
    ]
    assert all(
        re.search(r"\d s \(.*\), \d+ MiB .*\d s \(.*\), \d+ MiB +[\d.]+x +(100|99\.[5-9]).*%$", line) for line in lines
    )


def test_kv_says_what_the_whole_matrix_would_need_where_it_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(kv, "_free_bytes", lambda device: 2**20)
    assert (
        bench.main(
            ["kv", "lengths=240", "queries=token", "runs=1", "show=whole_matrix,video", *SMALL, "setting.num_frames=72"]
        )
        == 0
    )
    *_, line, video = capsys.readouterr().out.splitlines()
    assert line.endswith("not run: needs 0.0 GiB of 0.0 free")
    assert "keeping 2 chunks" in video


def test_kv_lists_every_selector_and_store(capsys):
    assert bench.main(["kv", "lengths=240", "runs=1", "show=selectors,stores", *SMALL]) == 0
    _, _, title, heading, *selectors = capsys.readouterr().out.splitlines()
    assert (title, heading.split()[0]) == ("selectors, 240 keys", "selector")
    place = selectors.index("stores, 240 keys")
    stores, selectors = selectors[place + 2 :], selectors[:place]
    assert [line.split()[0] for line in selectors] == NAMES
    assert all(re.search(r"\d s \(.*\), \d+ MiB +(-|[\d.]+ s) +[\d.]+ MiB$", line) for line in selectors)
    looks = {line.split()[0] for line in selectors if " - " not in line}
    assert looks == {"h2o", "tri_attention"}
    assert {line.split()[0] for line in stores} == set(CHOICES["kv/store"])
    assert stores[0].split()[0] == "full_precision"
    bits = {line.split()[0]: float(re.search(r" ([\d.]+)  [\d.]+( \(|$)", line)[1]) for line in stores}
    assert bits["full_precision"] == 32
    assert bits["bfloat16"] == 16
    assert bits["int4"] == 4 + 2 * 16 / 64  # a scale and a lowest number of 16 bits for 64 channels
    assert bits["int2"] < bits["kivi"] < bits["int8"]
    assert all(re.search(r"[+-][\d.]+%", line) for line in stores[1:])
    assert all("read buffer" in line for line in stores if line.split()[0] not in ("full_precision", "bfloat16"))


REUSING = [*SMALL, "reuse.threshold=0.5", "reuse.warmup_steps=1", "kv.budget=1 chunk"]


def test_latency_compares_with_vanilla_in_turn(capsys, monkeypatch):
    order, take = [], Runner.take
    monkeypatch.setattr(Runner, "take", lambda self, method, prompt: order.append(method) or take(self, method, prompt))
    assert bench.main(["latency", "latency_repeats=2", *REUSING]) == 0
    method = order[1]
    assert order == [VANILLA, method] * 3  # the last turn is for the memory alone
    printed = capsys.readouterr().out
    for title in ("whole", "  text", "  transformer", "  policy", "  scheduler", "  vae", "  other"):
        assert re.search(rf"^{title} .*\d \([\d.]+-[\d.]+\) .*%", printed, re.MULTILINE), title
    rows = {line[:22].strip(): line[22:].split() for line in printed.splitlines()}
    assert rows["policy"][-1] != "0.0%"
    seconds, first = ([float(word) for word in rows[title][::3]] for title in ("whole", "latency_first_chunk_s"))
    assert all(0 < of_chunk < of_video for of_chunk, of_video in zip(first, seconds, strict=True))
    for taken, rate in zip(rows["whole"][1::3], rows["fps"][1::2], strict=True):
        (fastest, slowest), (low, high) = ([float(end) for end in ends[1:-1].split("-")] for ends in (taken, rate))
        assert (low, high) == pytest.approx((48 / slowest, 48 / fastest), rel=0.02)
    peaks = [float(word) for word in rows["peak of tensors, GiB"] if word != "without" and word != "weights"]
    assert len(peaks) == 2
    assert min(peaks) > 0
    flops = [float(flops) for flops in rows["executed"][::2]]
    assert rows["executed"][1::2] == ["GFLOPs"] * 2
    assert flops[1] < flops[0]
    ratio = re.search(r"speed-up ([\d.]+)x \(2 pairs\), FLOP ratio ([\d.]+)x, efficiency ([\d.]+)", printed)
    gain, flop_ratio, efficiency = map(float, ratio.groups())
    assert flop_ratio == pytest.approx(flops[0] / flops[1], rel=2e-3)
    assert efficiency == pytest.approx(gain / flop_ratio, rel=2e-3)
    rest = re.search(r"without text and decoding: speed-up ([\d.]+)x \(2 pairs\), FLOP ratio ([\d.]+)x", printed)
    assert float(rest.group(2)) == flop_ratio
    assert float(rest.group(1)) != gain


def test_latency_compares_with_the_baseline_that_is_named(capsys):
    assert bench.main(["latency", "latency_repeats=1", "baseline=vanilla_kv", *REUSING]) == 0
    assert re.search(r"vanilla_kv and flowcache_fast in turn", capsys.readouterr().out)


def test_latency_of_vanilla_alone_claims_no_speedup(capsys):
    assert bench.main(["latency", "latency_repeats=1", "method=vanilla", *SMALL]) == 0
    assert "speed-up" not in capsys.readouterr().out


def test_flops_of_a_run_are_those_of_its_trace(capsys):
    assert bench.main(["flops", *REUSING]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"equal to what ran in each of 10 rows", printed)
    assert re.search(r"by kind +caption [\d.]+, time [\d.]+, denoise [\d.]+, near-clean [\d.]+, refresh", printed)
    sections = {line.split()[0]: [float(word) for word in line.split()[1:3]] for line in printed.splitlines()[2:8]}
    assert all(sections[name][0] > 0 for name in ("text", "transformer", "policy", "vae"))
    assert sections["transformer"][0] > sections["transformer"][1] > 0


def test_flops_that_differ_fail(capsys, monkeypatch):
    counted = FlopCounter.chunk
    monkeypatch.setattr(FlopCounter, "chunk", lambda self, *given: replace(counted(self, *given), gemm_flops=0))
    assert bench.main(["flops", *SMALL, "method=vanilla"]) == 1
    assert "FlopsDisagree: in row 0 the transformer executed" in capsys.readouterr().err


def test_products_alone_are_those_of_the_run(capsys):
    assert bench.main(["products", "products_repeats=2", *REUSING]) == 0
    printed = capsys.readouterr().out
    counts = [int(count.replace(",", "")) for count in re.findall(r"its ([\d,]+) products alone", printed)]
    assert counts[1] < counts[0]
    seconds = [list(map(float, own)) for own in re.findall(r" ([\d.]+) \(.*alone ([\d.]+) \(", printed)]
    assert all(0 < alone < whole for whole, alone in seconds)
    gains = re.findall(r"(speed-up|products alone) +([\d.]+)x, efficiency ([\d.]+) at ([\d.]+) of", printed)
    assert [gain[0] for gain in gains] == ["speed-up", "products alone"]
    assert all(float(own) == pytest.approx(float(gain) * float(left), rel=0.01) for _, gain, own, left in gains)


def test_efficiency_is_the_speed_up_times_the_compute_left(tmp_path, capsys):
    small = ["setting.num_frames=24", "setting.num_steps=8", "threads=1", f"output_dir={tmp_path}"]
    assert bench.main(["efficiency", "efficiency_repeats=2", *small]) == 0
    found = pd.read_csv(tmp_path / "tables" / "magi_embedded_efficiency.csv")
    assert list(found.groupby("frames").size()) == [3, 7]  # 128 x 128, 64 x 64
    for _, own in found.groupby("frames"):
        base, *others = own.to_dict("records")
        assert base["method"] == "vanilla"
        assert (base["flops_share"], base["forecast_mib"] > 0) == (1, True)
        assert math.isnan(base["speedup"])
        for row in others:
            assert row["flops_share"] == pytest.approx(row["flops"] / base["flops"], abs=1e-5)
            assert row["rest_efficiency"] == pytest.approx(row["rest_speedup"] * row["flops_share"], rel=1e-3)
            assert 0 < row["rest_s"] < row["latency_s"]
            assert row["products_efficiency"] > 0
    assert "flowcast_fast, reuse.share 0.25" in set(found["method"])
    text = (tmp_path / "tables" / "magi_embedded_efficiency.md").read_text(encoding="utf-8")
    assert "n = 2 generations of each in turn" in text
    assert "efficiency" in capsys.readouterr().out


def test_products_are_with_the_networks_own_weights_and_inputs_of_the_same_shapes():
    layer, x = torch.nn.Linear(4, 3), torch.full((2, 4), 7.0)
    with torch.inference_mode(), Products() as noted:
        layer(x)
        layer(x + 1)
    (_, first, _), (_, second, _) = noted.calls
    assert any(given is layer.weight for given in first)
    assert [given.shape for given in first] == [given.shape for given in second]
    assert all(one is other for one, other in zip(first, second, strict=True))  # no memory for each
