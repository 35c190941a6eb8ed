"""Fewer steps: those that are listed compute, and nothing else does."""

from __future__ import annotations

import pytest

from baselines.fewer_steps import FewerSteps
from flowcache.schedule import staged_schedule, timesteps


def test_listed_steps_compute():
    schedule = staged_schedule(2, timesteps(4), window_size=1)
    policy = FewerSteps(steps=[0, 2])
    policy.check_schedule(schedule)
    computed = [(row.index, policy.decide(row, {}, schedule).compute) for row in schedule.rows]
    assert [index for index, chunks in computed if chunks] == [0, 2, 4, 6]


@pytest.mark.parametrize("steps", [[], [1, 2], [0, 2, 1], [0, 0], [0, 1.5], [False, 1]])
def test_lists_that_are_none(steps):
    with pytest.raises(ValueError, match=r"must be whole numbers that rise from 0, such as \[0,1,3\]"):
        FewerSteps(steps=steps)


def test_a_step_that_the_chunk_does_not_have():
    with pytest.raises(ValueError, match=r"steps=\[0, 4\] names step 4, but a chunk has 4, from 0 on"):
        FewerSteps(steps=[0, 4]).check_schedule(staged_schedule(2, timesteps(4), window_size=1))
