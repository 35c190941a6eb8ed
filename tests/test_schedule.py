"""Time tables and windows: the official ones, and what must hold for any."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcache.schedule import (
    SCHEDULES,
    Schedule,
    rolling_schedule,
    sequential_schedule,
    staged_schedule,
    step_intervals,
    timesteps,
)
from tests.models.magi_goldens import manifest, tensors

TABLES = tensors("h_schedules")
WINDOWS = manifest("h_schedules")["sequences"]
SHORTCUTS = {"8_16_16": "8,16,16", "16_16_8": "16,16,8"}
VARIANTS = {
    "t": {},
    "t_square": {"schedule": "square"},
    "t_identity": {"schedule": "identity"},
    "t_piecewise": {"schedule": "piecewise"},
    "t_sd3_shift5": {"shift": 5.0},
}


@pytest.mark.parametrize("name", sorted(name for name in TABLES if name.startswith("t")))
def test_time_tables_are_the_official_ones(name):
    variant, steps, *shortcut = name.split(".")
    options = VARIANTS[variant] | ({"shortcut": SHORTCUTS[shortcut[0]]} if shortcut else {})
    table = timesteps(int(steps[1:]), **options)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, TABLES[name], atol=2e-7, rtol=0)


@pytest.mark.parametrize("name", sorted(name for name in TABLES if name.startswith("interval")))
def test_step_intervals_are_the_official_ones(name):
    _, steps, shortcut = name.split(".")
    assert torch.equal(step_intervals(int(steps[1:]), SHORTCUTS[shortcut]), TABLES[name])


def test_three_quarters_of_the_steps_lie_just_beyond_0_3():
    """In float32, as upstream, 0.3 falls on the far side of the near-clean threshold."""
    assert timesteps(64)[48].item() > 0.3
    assert timesteps(8)[6].item() > 0.3


@pytest.mark.parametrize("setting", sorted(WINDOWS))
@pytest.mark.parametrize("steps_per_stage", [1, 3])
def test_windows_are_the_official_ones(setting, steps_per_stage):
    num_chunks, window, offset = (int(part.split("=")[1]) for part in setting.split(","))
    schedule = staged_schedule(num_chunks, torch.linspace(0, 1, window * steps_per_stage + 1), window, offset)
    table = WINDOWS[setting]
    stages = [schedule.rows[i : i + steps_per_stage] for i in range(0, len(schedule.rows), steps_per_stage)]
    for key, expected in {
        "chunk_start": lambda row: row.chunks[0],
        "chunk_end": lambda row: row.chunks[-1] + 1,
        "t_start": lambda row: row.steps[-1].step // steps_per_stage,
        "t_end": lambda row: row.oldest.step // steps_per_stage + 1,
    }.items():
        for rows in ([stage[sub] for stage in stages] for sub in range(steps_per_stage)):
            assert [expected(row) for row in rows] == table[key]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    window = draw(st.integers(1, 5))
    num_steps = window * draw(st.integers(1, 4))
    num_chunks = draw(st.integers(1, 9))
    prefix = draw(st.integers(0, num_chunks - 1))
    return staged_schedule(num_chunks, timesteps(num_steps), window, prefix, step_intervals(num_steps))


@given(schedules())
def test_every_chunk_takes_every_step_once_and_in_order(schedule):
    for chunk in range(schedule.num_chunks):
        taken = [step for row in schedule.rows for step in row.steps if step.chunk == chunk]
        expected = range(schedule.num_steps) if chunk >= schedule.prefix_chunks else []
        assert [step.step for step in taken] == list(expected)
        for before, after in pairwise(taken):
            assert before.t_next == after.t
        if taken:
            assert (taken[0].t, taken[-1].t_next) == (0.0, pytest.approx(1.0, abs=2e-7))


@given(schedules())
def test_rows_hold_a_window_of_neighbours_with_the_oldest_furthest(schedule):
    sub_steps = schedule.num_steps // schedule.window_size
    generated = schedule.num_chunks - schedule.prefix_chunks
    assert len(schedule.rows) == sub_steps * (generated + schedule.window_size - 1)
    assert [row.index for row in schedule.rows] == list(range(len(schedule.rows)))
    for row in schedule.rows:
        assert 1 <= len(row.chunks) <= schedule.window_size
        assert row.chunks == tuple(range(row.chunks[0], row.chunks[-1] + 1))
        assert all(a.step - b.step == sub_steps for a, b in pairwise(row.steps))
        assert row.oldest == row.step_of(row.chunks[0])
        assert all(row.step_of(step.chunk) is step for step in row.steps)


@given(schedules())
def test_each_generated_chunk_finishes_once_on_its_last_step(schedule):
    finished = [chunk for row in schedule.rows for chunk in row.finished]
    assert finished == list(range(schedule.prefix_chunks, schedule.num_chunks))
    for row in schedule.rows:
        assert row.finished == tuple(s.chunk for s in row.steps if s.step == schedule.num_steps - 1)
    assert schedule.num_chunk_steps == (schedule.num_chunks - schedule.prefix_chunks) * schedule.num_steps
    assert schedule.rows[-1].finished == (schedule.num_chunks - 1,)


@given(st.sampled_from(SCHEDULES), st.integers(1, 64), st.floats(1.0, 10.0))
def test_times_rise_from_noise_to_clean(name, num_steps, shift):
    table = timesteps(num_steps, name, shift)
    assert len(table) == num_steps + 1
    assert table[0] == 0
    assert abs(table[-1] - 1) <= 5e-7  # a few roundings of float32
    assert (table.diff() > 0).all()


def test_intervals_of_a_row_follow_its_place_in_the_stage():
    """Upstream indexes the intervals by the step within the stage, so a chunk's own step does not matter."""
    intervals = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    schedule = staged_schedule(2, timesteps(6), 2, 0, intervals)
    assert [row.interval for row in schedule.rows] == [1, 2, 3] * 3
    assert {row.interval for row in staged_schedule(2, timesteps(6), 2).rows} == {1.0}


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="unknown time schedule 'cosine'; there are sd3, square, piecewise, identity"):
        timesteps(8, "cosine")
    with pytest.raises(ValueError, match=r"num_steps=10 does not divide into window_size=4 .* such as 8"):
        staged_schedule(3, timesteps(10), 4)
    with pytest.raises(ValueError, match=r"num_steps=2 does not divide into window_size=4 .* such as 4"):
        staged_schedule(3, timesteps(2), 4)
    with pytest.raises(ValueError, match="window_size=0 must be at least 1 chunk"):
        staged_schedule(3, timesteps(8), 0)
    for prefix in (-1, 3, 4):
        with pytest.raises(ValueError, match=f"a prefix of {prefix} chunks leaves nothing to generate in a video of 3"):
            staged_schedule(3, timesteps(8), 4, prefix)


# Causal Wan's.


def test_one_chunk_after_another_takes_all_of_its_steps():
    schedule = sequential_schedule(4, [1000.0, 500.0], prefix_chunks=1, first_times=[1000.0, 750.0, 500.0, 250.0])
    assert [row.chunks for row in schedule.rows] == [(1,)] * 4 + [(2,)] * 2 + [(3,)] * 2
    assert [(row.steps[0].t, row.steps[0].t_next) for row in schedule.rows[2:6]] == [
        (500.0, 250.0),
        (250.0, 0.0),
        (1000.0, 500.0),
        (500.0, 0.0),
    ]
    assert [row.finished for row in schedule.rows if row.finished] == [(1,), (2,), (3,)]
    assert [schedule.steps_of(chunk) for chunk in (1, 2, 3)] == [4, 2, 2]
    assert (schedule.num_steps, schedule.num_chunk_steps) == (2, 8)
    assert all(schedule.events(chunk) == {} for chunk in range(4))  # nothing finishes while another runs
    with pytest.raises(ValueError, match="a prefix of 4 chunks leaves nothing to generate in a video of 4"):
        sequential_schedule(4, [1000.0], prefix_chunks=4)


def test_rolling_chunks_start_in_every_row_and_run_together():
    schedule = rolling_schedule(4, [1000.0, 800.0, 600.0])
    assert [row.chunks for row in schedule.rows] == [(0,), (0, 1), (0, 1, 2), (1, 2, 3), (2, 3), (3,)]
    for row in schedule.rows:
        assert [step.step for step in row.steps] == [row.index - chunk for chunk in row.chunks]
    assert [row.finished for row in schedule.rows] == [(), (), (0,), (1,), (2,), (3,)]
    # A video of fewer chunks than there are steps takes all of its steps too.
    assert [row.chunks for row in rolling_schedule(1, [1000.0, 800.0, 600.0]).rows] == [(0,)] * 3
