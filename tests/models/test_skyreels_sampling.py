"""Whole two-window runs against the official code's (goldens/skyreels: sampling): decisions, distances and latents."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from flowcache.method import Method
from flowcache.models.skyreels.generation import SkyReelsGeneration
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace, TraceEntry
from tests.methods import chunkwise, uniform_calls, vanilla
from tests.models.skyreels_goldens import golden_generation, manifest, tensors

GOLDEN = tensors("sampling")
TOLERANCE = 5e-5  # of latents, see goldens/skyreels/README.md
RETAINED = {"distance": "rescaled_modulation", "polynomial": "skyreels_v2_1.3b_retained", "warmup_steps": 5}
UNRETAINED = {"distance": "rescaled_modulation", "polynomial": "skyreels_v2_1.3b", "warmup_steps": 1}
UNRETAINED_TEACACHE = UNRETAINED | {"distance": "rescaled_time_embedding"}
PUBLISHED = {"refresh_clean_kv": False, "prefix": "published"}
FLOWCACHE: dict[str, tuple[Method, dict]] = {
    "flowcache_noskip": (chunkwise(threshold=0.0, **RETAINED, **PUBLISHED), {}),
    "flowcache_thr0.10": (chunkwise(threshold=0.1, **RETAINED, **PUBLISHED), {}),
    "flowcache_thr0.15": (chunkwise(threshold=0.15, **RETAINED, **PUBLISHED), {}),
    "flowcache_thr0.15_noret": (chunkwise(threshold=0.15, **UNRETAINED, **PUBLISHED), {}),
    "flowcache_thr0.10_kvrange1": (chunkwise(threshold=0.1, **RETAINED, **PUBLISHED), {"clean_blocks_seen": 1}),
    "flowcache_thr0.10_addnoise20": (
        chunkwise(threshold=0.1, **RETAINED, **PUBLISHED),
        {"addnoise_condition": 20},
    ),
}
TEACACHE = {
    "teacache_thr0.15": (uniform_calls(threshold=0.15, **RETAINED), {}),
    "teacache_thr0.25": (uniform_calls(threshold=0.25, **RETAINED), {}),
    "teacache_thr0.25_noret": (uniform_calls(threshold=0.25, **UNRETAINED_TEACACHE), {}),
}
VANILLA = {
    "vanilla_bidirectional": (vanilla(), {}),
    "vanilla_block_causal": (vanilla(attention="causal"), {}),
}
RUNS = VANILLA | FLOWCACHE | TEACACHE


@dataclass
class Run:
    """A finished run: latents of each window, of the rows in between, decisions and the conditional velocities."""

    trace: Trace = field(default_factory=Trace)
    finals: dict[int, Tensor] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)
    rows: tuple[Row, ...] = ()

    def of_window(self, window: int) -> list[tuple[Row, Decision]]:
        return [(row, d) for row, d in zip(self.rows, self.decisions, strict=True) if row.window == window]

    def entries(self, window: int) -> list[TraceEntry]:
        return [entry for entry in self.trace.entries if self.rows[entry.row].window == window]


@cache
def finished(variant: str) -> Run:
    method, settings = RUNS[variant]
    generation = golden_generation(variant, method, **settings)
    run = Run(rows=generation.schedule.rows)
    forward = SkyReelsGeneration._run

    def observe(row: Row, decision: Decision) -> None:
        run.finals[row.window] = generation.latents[0].clone()
        run.latents.append(run.finals[row.window])
        run.decisions.append(decision)

    def record(branch, *rest):
        velocity = forward(generation, branch, *rest)
        if branch is generation.branches[0]:
            run.velocities.append(torch.cat(list(velocity.values()), dim=2))
        return velocity

    generation._run = record
    for _ in sample(generation, run.trace, observe=observe):
        pass
    return run


def recorded(variant: str, window: int) -> dict:
    return manifest("sampling")["variants"][variant]["windows"][window]


@pytest.mark.parametrize("variant", RUNS)
def test_latents_of_both_windows_are_the_official_ones(variant):
    run = finished(variant)
    for window in (0, 1):
        assert sum(row.window == window for row in run.rows) == recorded(variant, window)["rows"]
        expected = GOLDEN[f"{variant}.w{window}.final"]
        torch.testing.assert_close(run.finals[window], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", [v for v in RUNS if f"{v}.row6.cond" in GOLDEN])
@pytest.mark.parametrize("row", [6, 14])
def test_rows_in_between_are_the_official_ones(variant, row):
    run = finished(variant)
    torch.testing.assert_close(run.latents[row - 1], GOLDEN[f"{variant}.row{row}.latents_in"], atol=TOLERANCE, rtol=0)
    active = slice(5 * run.rows[row].chunks[0], 5 * run.rows[row].chunks[-1] + 5)
    expected = GOLDEN[f"{variant}.row{row}.cond"][:, active]
    torch.testing.assert_close(run.velocities[row][0], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", FLOWCACHE)
@pytest.mark.parametrize("window", [0, 1])
def test_chunkwise_decisions_are_the_official_ones(variant, window):
    run, record = finished(variant), recorded(variant, window)
    for (row, decision), expected in zip(run.of_window(window), record["decision_cond"], strict=True):
        first_row_prefix = window == 1 and row.index == run.of_window(1)[0][0].index
        own = [-1 if c not in row.chunks else int(c in decision.compute) for c in row.visible]
        assert own == [-1 if first_row_prefix and i == 0 else flag for i, flag in enumerate(expected)]
        assert decision.branches == ()
    assert record["cond_uncond_decisions_equal"]
    actions = [entry.action for entry in run.entries(window)]
    assert actions.count("reuse") == sum(row.count(0) for row in record["decision_cond"])


@pytest.mark.parametrize("variant", [v for v in FLOWCACHE if v != "flowcache_noskip"])
@pytest.mark.parametrize("window", [0, 1])
def test_chunkwise_distances_are_the_official_ones(variant, window):
    """Raw, rescaled and accumulated: the first two alike for every chunk, as the schedule alone decides them."""
    run, record = finished(variant), recorded(variant, window)
    rescaled = RUNS[variant][0].reuse._rescaled
    accumulated = GOLDEN[f"{variant}.w{window}.acc_cond"]
    first_row, first_chunk = run.of_window(window)[0][0].index, run.of_window(window)[0][0].visible[0]
    for entry in run.entries(window):
        expected = record["own_step_rel_l1"].get(str(entry.step))
        if expected is not None:
            assert entry.distance == pytest.approx(expected, rel=1e-4)
            assert rescaled(entry.distance) == pytest.approx(record["own_step_rescaled"][str(entry.step)], rel=2e-4)
            assert (entry.action == "compute") == record["own_step_computed"][str(entry.step)]
        after = accumulated[entry.row - first_row, entry.chunk - first_chunk].item()
        assert entry.accumulated == pytest.approx(after, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("variant", TEACACHE)
@pytest.mark.parametrize("window", [0, 1])
def test_uniform_decisions_are_the_official_ones_call_by_call(variant, window):
    run, calls = finished(variant), iter(recorded(variant, window)["calls"])
    accumulated = {entry.row: entry.accumulated for entry in run.entries(window)}
    for row, decision in run.of_window(window):
        for branch in (0, 1):
            _, computed, total = next(calls)
            assert decision.of_branch(branch) == (row.chunks if computed else ())
            if branch == 0:
                assert accumulated[row.index] == pytest.approx(total, rel=1e-4, abs=1e-6)
    assert next(calls, None) is None


def test_the_branches_of_the_published_teacache_decide_apart_where_its_counter_wraps_between_them():
    decisions = [decision for _, decision in finished("teacache_thr0.15").of_window(1)]
    assert any(decision.of_branch(0) != decision.of_branch(1) for decision in decisions)


def test_runs_differ_by_what_the_switches_say():
    """The goldens are further apart than the tolerance, so that agreeing with all means something."""
    finals = {variant: GOLDEN[f"{variant}.w1.final"] for variant in RUNS}
    for a in RUNS:
        for b in RUNS:
            assert a == b or (finals[a] - finals[b]).abs().max() > 10 * TOLERANCE, (a, b)


@pytest.mark.parametrize(
    ("variant", "changes", "settings"),
    [
        ("flowcache_noskip", {"refresh_clean_kv": True}, {}),
        ("flowcache_thr0.10_kvrange1", {"prefix": "clean"}, {"clean_blocks_seen": 1}),
        ("flowcache_thr0.10", {}, {"corrector": "sound"}),
    ],
    ids=["refresh", "prefix", "corrector"],
)
def test_each_parity_switch_is_needed(variant, changes, settings):
    method = replace(RUNS[variant][0], **changes)
    generation = golden_generation(variant, method, **settings)
    for _ in sample(generation):
        pass
    assert (generation.latents[0] - GOLDEN[f"{variant}.w1.final"]).abs().max() > 10 * TOLERANCE
