"""Every k-th step: which steps those are, and how many."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.every_k import EveryK
from flowcache.schedule import staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import every_k
from tests.models.magi_goldens import latents_of, small_generation


def computed_steps(every: float, warmup_steps: int, num_steps: int) -> list[int]:
    schedule = staged_schedule(1, timesteps(num_steps), window_size=1)
    policy = EveryK(every=every, warmup_steps=warmup_steps)
    return [row.index for row in schedule.rows if policy.decide(row, {}, schedule).compute]


@pytest.mark.parametrize(
    ("every", "warmup_steps", "expected"),
    [
        (1, 0, list(range(12))),
        (2, 0, [0, 2, 4, 6, 8, 10, 11]),
        (3, 1, [0, 3, 6, 9, 11]),
        (3, 2, [0, 1, 4, 7, 10, 11]),
        (4, 5, [0, 1, 2, 3, 4, 8, 11]),
        (100, 0, [0, 11]),
        (2, 50, list(range(12))),
        (1.0, 0, list(range(12))),
        (2.5, 0, [0, 3, 5, 8, 10, 11]),  # 2.5 and 7.5 round up
        (2.5, 3, [0, 1, 2, 5, 7, 10, 11]),
        (1.5, 1, [0, 2, 3, 5, 6, 8, 9, 11]),
        (1.25, 0, [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]),
        (3.7, 0, [0, 4, 7, 11]),
        (1e300, 0, [0, 11]),
    ],
)
def test_steps_by_hand(every, warmup_steps, expected):
    assert computed_steps(every, warmup_steps, 12) == expected


@given(st.integers(1, 12), st.integers(0, 14), st.integers(1, 30))
def test_counts_are_the_formula(every, warmup_steps, num_steps):
    """W computed steps, then one in every k of the rest, and the last."""
    first = min(max(1, warmup_steps), num_steps)
    rest = num_steps - first
    expected = first + rest // every + (rest % every > 0)
    assert len(computed_steps(every, warmup_steps, num_steps)) == expected


@given(st.floats(1, 20), st.integers(0, 14), st.integers(2, 64))
def test_fractions_are_spread_evenly_between_the_whole_numbers_around_them(every, warmup_steps, num_steps):
    steps = computed_steps(every, warmup_steps, num_steps)
    first = max(0, warmup_steps - 1)
    spread = [step for step in steps[:-1] if step >= first]
    assert steps[: first + 1] == list(range(min(first + 1, num_steps)))
    assert {math.floor(every), math.ceil(every)} >= {later - earlier for earlier, later in pairwise(spread)}
    assert all(abs(step - first - count * every) <= 0.5 + 1e-9 for count, step in enumerate(spread))
    assert steps[-1] == num_steps - 1


@given(st.integers(1, 12), st.integers(0, 14), st.integers(1, 30))
def test_whole_numbers_are_what_they_were_when_there_were_no_others(every, warmup_steps, num_steps):
    first = max(0, warmup_steps - 1)
    before = [s for s in range(num_steps) if s < first or (s - first) % every == 0 or s == num_steps - 1]
    assert computed_steps(every, warmup_steps, num_steps) == before


def test_a_whole_number_with_a_point_is_the_same_method_under_the_same_name():
    written, whole = (every_k(every=every, warmup_steps=5) for every in (2.0, 2))
    assert written == whole
    assert repr(written.described()) == repr(whole.described())
    assert every_k(every=2.5, warmup_steps=5).described()["reuse"]["every"] == 2.5


@given(st.integers(1, 6), st.integers(0, 9), st.integers(1, 6), st.integers(1, 4))
def test_every_chunk_follows_its_own_steps(every, warmup_steps, num_chunks, sub_steps):
    schedule = staged_schedule(num_chunks, timesteps(4 * sub_steps))
    policy = EveryK(every=every, warmup_steps=warmup_steps)
    own: dict[int, list[int]] = {chunk: [] for chunk in range(num_chunks)}
    for row in schedule.rows:
        for chunk in policy.decide(row, {}, schedule).compute:
            own[chunk].append(row.step_of(chunk).step)
    assert set(map(tuple, own.values())) == {tuple(computed_steps(every, warmup_steps, schedule.num_steps))}


def test_reuses_in_a_generation():
    method, trace = every_k(every=3, warmup_steps=1), Trace()
    latents = latents_of(small_generation(method), trace)
    assert trace.computed_fraction == 4 / 8  # steps 0, 3, 6 and 7 of 8
    assert torch.isfinite(latents).all()
    assert {entry.distance for entry in trace.entries} == {None}


@pytest.mark.parametrize("every", [0, -1, 0.99, math.nan, math.inf, "2", True, None])
def test_bad_counts_are_refused(every):
    with pytest.raises(ValueError, match=r"every=.* must be a finite number of at least 1 \(1 computes every step\)"):
        every_k(every=every, warmup_steps=0)


def test_bad_warmups_are_refused():
    with pytest.raises(ValueError, match="warmup_steps=-1 must be a whole number of at least 0"):
        every_k(every=2, warmup_steps=-1)
