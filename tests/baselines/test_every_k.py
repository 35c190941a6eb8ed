"""Every k-th step: which steps those are, and how many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.every_k import EveryK
from flowcache.schedule import staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import every_k
from tests.models.magi_goldens import latents_of, small_generation


def computed_steps(every: int, warmup_steps: int, num_steps: int) -> list[int]:
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


@pytest.mark.parametrize("every", [0, -1, 2.0, "2"])
def test_bad_counts_are_refused(every):
    with pytest.raises(ValueError, match=r"every=.* must be a whole number of at least 1 \(1 computes every step\)"):
        every_k(every=every, warmup_steps=0)


def test_bad_warmups_are_refused():
    with pytest.raises(ValueError, match="warmup_steps=-1 must be a whole number of at least 0"):
        every_k(every=2, warmup_steps=-1)
