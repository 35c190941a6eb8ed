"""TeaCache as published for SkyReels-V2: the counter of calls. Whole runs: tests/models/test_skyreels_sampling.py."""

from __future__ import annotations

from baselines.uniform_calls import UniformCalls
from flowcache.reuse.base import Decision
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Schedule, diffusion_forcing_schedule

RESCALED = {"distance": "rescaled_modulation", "polynomial": (1.0, 0.0)}


def decide_all(policy: UniformCalls, schedule: Schedule, relative: float) -> list[Decision]:
    decided = []
    for row in schedule.rows:
        opens = row.index == schedule.windows[row.window].rows[0]
        measured = {} if opens else {chunk: ChunkDistance(relative, 1.0) for chunk in row.visible}
        decided.append(policy.decide(row, measured, schedule))
    return decided


def computed(decided: list[Decision], branch: int) -> list[int]:
    return [row for row, decision in enumerate(decided) if decision.of_branch(branch)]


def test_retained_calls_recur_half_way_through_an_even_window():
    schedule = diffusion_forcing_schedule(1, list(range(900, 100, -100)), 0, 1)  # one window of eight rows
    decided = decide_all(UniformCalls(threshold=1e9, warmup_steps=1, **RESCALED), schedule, 0.0)
    assert computed(decided, 0) == computed(decided, 1) == [0, 4]


def test_the_branches_part_half_way_through_an_odd_window():
    schedule = diffusion_forcing_schedule(
        1, list(range(900, 200, -100)), 0, 1
    )  # seven rows: call 7 is the second of row 3
    decided = decide_all(UniformCalls(threshold=1e9, warmup_steps=1, **RESCALED), schedule, 0.0)
    assert (computed(decided, 0), computed(decided, 1)) == ([0, 4], [0, 3])


def test_each_window_starts_its_counter_over():
    schedule = diffusion_forcing_schedule(4, list(range(900, 100, -100)), 2, 3, 1)
    firsts = [window.rows[0] for window in schedule.windows]
    halves = [window.rows[0] + len(window.rows) // 2 for window in schedule.windows]
    decided = decide_all(UniformCalls(threshold=1e9, warmup_steps=1, **RESCALED), schedule, 0.0)
    assert computed(decided, 0) == sorted(firsts + halves)


def test_branches_accumulate_apart_and_reuse_strictly_below_the_threshold():
    schedule = diffusion_forcing_schedule(1, list(range(900, 100, -100)), 0, 1)
    decided = decide_all(UniformCalls(threshold=0.5, warmup_steps=1, **RESCALED), schedule, 0.25)
    assert computed(decided, 0) == computed(decided, 1) == [0, 2, 4, 6]
