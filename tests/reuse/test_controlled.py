"""The controlled policy: it keeps its budget, skips longer where the forecast is better, and gives first chunks more.

Errors are made up.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from flowcache.reuse.base import Report
from flowcache.reuse.controlled import LONGEST_GAP, Controlled
from flowcache.schedule import Schedule, diffusion_forcing_schedule, staged_schedule, timesteps

STAGED = staged_schedule(6, timesteps(64))
WINDOWS = diffusion_forcing_schedule(9, range(999, 0, -33), ar_step=5, window_chunks=5, overlap_chunks=2)


def computed(policy: Controlled, schedule: Schedule, error) -> dict[int, list[int]]:
    """By chunk, where the forecast's error is ``error(step, steps since the last computed)``."""
    policy = policy.fresh()
    steps: dict[int, list[int]] = {}
    waiting = None
    for row in schedule.rows:
        if waiting is not None:
            policy.observe(*waiting)
        compute = policy.decide(row, {}, schedule).compute
        reports = {}
        for chunk in compute:
            step = row.step_of(chunk)
            before = steps.setdefault(chunk, [])
            value = error(step, step.step - before[-1]) if before else math.nan
            reports[chunk] = Report(output=1.0, forecast_error=value)
            before.append(step.step)
        waiting = (row, reports) if reports else None
    return steps


def even(step, gap: int) -> float:
    """Of an output whose second derivative stays as it is, per square root of a step's length."""
    return gap**2 / math.sqrt(abs(step.t_next - step.t))


@pytest.mark.parametrize("schedule", [STAGED, WINDOWS], ids=["staged", "windows"])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.8])
def test_the_budget_is_kept_whatever_the_errors(schedule, share):
    for error in (even, lambda step, gap: gap**2 * (1 + 9 * (step.step % 7 == 0)), lambda step, gap: 0.0):
        steps = computed(Controlled(share=share), schedule, error)
        taken = sum(map(len, steps.values())) / schedule.num_chunk_steps
        forced = 3 / schedule.num_steps
        assert share - 0.06 < taken < share + 0.06 + forced


def test_an_even_error_is_met_by_even_gaps():
    steps = computed(Controlled(share=0.25, first_ratio=1.0), STAGED, even)[0]
    gaps = [b - a for a, b in pairwise(steps)]
    assert set(gaps[1:-1]) <= {3, 4, 5}


def test_gaps_are_shorter_where_the_forecast_is_worse_and_never_beyond_the_limit():
    def turning(step, gap: int) -> float:
        return even(step, gap) * (1000.0 if 20 <= step.step < 40 else 1.0)

    steps = computed(Controlled(share=0.25, first_ratio=1.0), STAGED, turning)[0]
    gaps = {a: b - a for a, b in pairwise(steps)}
    inside = [gap for at, gap in gaps.items() if 24 <= at < 36]
    before = [gap for at, gap in gaps.items() if 4 <= at < 20]
    assert sum(inside) / len(inside) < min(before)
    assert max(gaps.values()) <= LONGEST_GAP * 64


def test_the_first_chunk_computes_most_and_all_alike_with_a_ratio_of_one():
    counts = [len(own) for own in computed(Controlled(share=0.25, first_ratio=64.0), STAGED, even).values()]
    assert counts[0] > counts[1] > counts[3]
    counts = [len(own) for own in computed(Controlled(share=0.25, first_ratio=1.0), STAGED, even).values()]
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_what_the_first_chunk_has_no_steps_for_goes_to_the_others(share):
    allowances = Controlled(share=share)._allowances(STAGED)
    assert sum(allowances.values()) == pytest.approx(share * STAGED.num_chunk_steps)
    assert max(allowances.values()) <= 64


def test_an_error_across_a_jump_steers_nothing():
    def jumping(step, gap: int) -> float:
        return even(step, gap) * (1e6 if step.step in STAGED.jumps(step.chunk) else 1.0)

    policy = Controlled(share=0.25, first_ratio=1.0)
    assert computed(policy, STAGED, jumping) == computed(policy, STAGED, even)


def test_first_last_and_jump_steps_always_compute():
    for chunk, steps in computed(Controlled(share=0.1), STAGED, even).items():
        assert {0, 63, *STAGED.jumps(chunk)} <= set(steps)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 2}, r"share=2 must be a number from 0 to 1"),
        ({"share": 0.5, "first_ratio": 0.5}, r"first_ratio=0\.5 must be a finite number of at least 1"),
        ({"share": 0.5, "first_ratio": math.inf}, "first_ratio=inf must be"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Controlled(**options)
