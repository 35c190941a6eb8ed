"""EasyCache: against what the official code decides and gives, by hand, and on every model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.easycache import EasyCache
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.reuse.base import Report
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.reuse.evidence import EvidenceReader
from flowcache.schedule import sequential_schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.golden_files import manifest, tensors
from tests.methods import method, vanilla
from tests.models import magi_goldens, skyreels_goldens

MANIFEST, TENSORS = manifest("magcache_easycache/magcache_easycache"), tensors("magcache_easycache/magcache_easycache")
CASES = {name: case for name, case in MANIFEST.items() if name.startswith("easy_")}
NUMBERS = ("computed", "acc", "k")


class Inputs:
    """A video of one chunk, whose latent in every row is given."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.row = x, 0

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        assert kind == "latent"
        return self.x[self.row][None]


def video(settings: dict[str, Any], x: Tensor, v: Tensor) -> tuple[list[Tensor], dict[str, list[float]]]:
    """Outputs of every call, [C, F, H, W], and the numbers of every step. ``x`` [N, ...], ``v`` [N, branches, ...]."""
    num_steps, branches = len(x), v.shape[1]
    schedule = sequential_schedule(1, [float(num_steps - step) for step in range(num_steps)])
    policy = EasyCache(threshold=settings["thr"], warmup_steps=settings["ret"])
    source, history = Inputs(x), OutputHistory(Hold(), policy.report)
    reader = EvidenceReader(DistanceMeter(source, policy.distance), policy.report)
    differences = [OutputHistory(Hold()) for _ in range(branches)]
    outputs, numbers = [], {name: [] for name in NUMBERS}
    for row, now, true in zip(schedule.rows, x, v, strict=True):
        source.row, (step,) = row.index, row.steps
        distances, reported = reader.read(row)
        if reported is not None:
            policy.observe(*reported)
        computes = bool(policy.decide(row, distances, schedule).compute)
        if computes:
            history.update(step, true[0], now)  # the conditional call decides
            reader.keep(row, *history.take_report())
        for each, output in zip(differences, true, strict=True):
            if computes:
                each.update(step, output - now, now)
            outputs.append(output if computes else now + each.predict(step))
        numbers["computed"].append(int(computes))
        numbers["acc"].append(policy.accumulated[0])
        numbers["k"].append(policy.rates.get(0, math.nan))
    return outputs, numbers


@pytest.mark.parametrize("name", CASES)
def test_decisions_rates_and_outputs_are_the_official_codes(name):
    case = CASES[name]
    settings, x, v = case["settings"], TENSORS[f"{name}.x"], TENSORS[f"{name}.v"]
    num_steps = settings["steps"]
    if v.ndim == x.ndim:
        v = v.unsqueeze(1)
    branches, outputs = v.shape[1], []
    for first in range(0, len(x), num_steps):
        own, numbers = video(settings, x[first : first + num_steps], v[first : first + num_steps])
        calls = slice(first * branches, (first + num_steps) * branches)
        assert numbers["computed"] == case["computed"][calls][::branches]
        assert numbers["acc"] == pytest.approx(case["acc"][calls][::branches], abs=1e-6)
        # A rate is known from the next row on. Official state lives on, so that a next video's first rate is of both.
        theirs = case["k"][calls][::branches]
        for step, (ours, their) in enumerate(zip(numbers["k"][1:], theirs, strict=False)):
            if step > 0:
                assert ours == pytest.approx(their, abs=5e-6)
        outputs += own
    torch.testing.assert_close(torch.stack(outputs), TENSORS[f"{name}.out"], atol=1e-6, rtol=0)


def test_steps_by_hand():
    """Twice as fast as the latent, of size 4: each change of 0.5 adds 0.25."""
    schedule = staged_schedule(1, timesteps(9), window_size=1)
    policy = EasyCache(threshold=0.6, warmup_steps=2)
    computed = []
    for row in schedule.rows:
        decision = policy.decide(row, {0: ChunkDistance(0.5, 1.0)} if row.index else {}, schedule)
        if decision.compute:
            computed.append(row.index)
            known = len(computed) > 1
            policy.observe(row, {0: Report(4.0, 1.0, 0.5) if known else Report(4.0)})
    assert computed == [0, 1, 4, 7, 8]


@pytest.mark.parametrize(
    ("report", "why"),
    [(Report(4.0), "no rate yet"), (Report(4.0, 1.0, 0.0), "the latent has not moved"), (Report(math.nan), "no size")],
)
def test_it_computes_without_a_rate(report, why):
    schedule = staged_schedule(1, timesteps(6), window_size=1)
    policy = EasyCache(threshold=9.0, warmup_steps=0)
    for row in schedule.rows:
        assert policy.decide(row, {0: ChunkDistance(0.1, 1.0)} if row.index else {}, schedule).compute, why
        policy.observe(row, {0: report})


def test_a_change_that_is_no_number_computes_and_is_forgotten():
    schedule = staged_schedule(1, timesteps(6), window_size=1)
    policy, computed = EasyCache(threshold=9.0, warmup_steps=2), []
    for row in schedule.rows:
        change = math.nan if row.index == 3 else 0.1
        if policy.decide(row, {0: ChunkDistance(change, 1.0)} if row.index else {}, schedule).compute:
            computed.append(row.index)
            policy.observe(row, {0: Report(4.0, 1.0, 0.5)})
    assert computed == [0, 1, 3, 5]


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_skips_and_is_vanilla_at_a_threshold_of_0(goldens):
    def run(threshold: float) -> tuple[Tensor, Trace]:
        trace = Trace()
        own = method(EasyCache(threshold=threshold, warmup_steps=1))
        return goldens.latents_of(goldens.small_generation(own), trace), trace

    expected = goldens.latents_of(goldens.small_generation(vanilla(attention="cached")))
    assert torch.equal(run(0)[0], expected)
    latents, trace = run(2.0)
    assert {entry.action for entry in trace.entries} == {"compute", "reuse"}
    assert latents.isfinite().all()
    assert not torch.equal(latents, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": math.inf}, "threshold=inf must be a finite number of at least 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EasyCache(**{"threshold": 0.05, "warmup_steps": 5} | options)


def test_a_warmup_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=9 is more than the 8 steps of a chunk"):
        EasyCache(threshold=0.05, warmup_steps=9).check_schedule(staged_schedule(1, timesteps(8), window_size=1))
