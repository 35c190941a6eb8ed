"""Uniform keys: evenly spread over all of the video so far, however often it was compressed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baselines.uniform_keys import STEPS, UniformKeys
from flowcache.kv.select.base import Entries
from tests.methods import select_keys

FRAME, CHUNK = 4, 12


def entries(position: torch.Tensor) -> Entries:
    key = torch.ones(1, len(position), 2)
    return Entries(key[:, :0], key, key, position[None], None, 0, FRAME, CHUNK)


def kept_of(select: UniformKeys, position: torch.Tensor, budget: int) -> torch.Tensor:
    return position[select.select(entries(position), budget).indices[0]]


@pytest.mark.parametrize("selection", ["token", "frame", "chunk"])
def test_many_compressions_keep_what_one_of_the_whole_video_would(selection):
    select, budget = UniformKeys(selection=selection), 2 * CHUNK
    held = torch.arange(2 * CHUNK)
    for chunk in range(2, 30):
        held = kept_of(select, torch.cat([held, torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK)]), budget)
    assert torch.equal(held, kept_of(select, torch.arange(30 * CHUNK), budget))


@pytest.mark.parametrize(("length", "budget"), [(100, 7), (1000, 333), (36450, 24300), (600, 599)])
def test_gaps_are_of_three_sizes_at_most_and_near_their_mean(length, budget):
    held = kept_of(UniformKeys(), torch.arange(length), budget)
    gaps = held.diff()
    assert len(gaps.unique()) <= 3
    assert gaps.max() <= 3 * length / budget
    assert gaps.min() >= length / budget / 3


def test_no_two_units_rank_alike():
    assert STEPS == 2**24
    score = UniformKeys().scores(entries(torch.arange(10**6)))
    assert len(score.unique()) == 10**6


def test_sinks_stay_and_whole_frames_are_kept():
    key = torch.randn(1, 36, 2)
    kept = select_keys(key[:, :0], key, 16, UniformKeys(selection="frame", sink_frames=2), FRAME, CHUNK).indices[0]
    frames = kept.unflatten(0, (-1, FRAME))[:, 0] // FRAME
    assert frames[:2].tolist() == [0, 1]
    assert torch.equal(kept, (frames[:, None] * FRAME + torch.arange(FRAME)).flatten())
    assert replace(UniformKeys(), sink_frames=2).least_tokens(FRAME, CHUNK) == 2 * FRAME + 1
