"""Random keys: every key of the video so far is as likely as any other, and each draw can be had again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baselines.random_keys import RandomKeys
from flowcache.kv.select.base import Entries

FRAME, CHUNK = 4, 12


def kept_of(select: RandomKeys, position: torch.Tensor, budget: int, layer: int = 0) -> torch.Tensor:
    key = torch.ones(2, len(position), 2)
    made = Entries(key[:, :0], key, key, position.expand(2, -1), None, layer, FRAME, CHUNK)
    indices = select.select(made, budget).indices
    assert torch.equal(indices[0], indices[1])
    return position[indices[0]]


@pytest.mark.parametrize("selection", ["token", "frame", "chunk"])
def test_many_compressions_keep_what_one_of_the_whole_video_would(selection):
    select, budget = RandomKeys(selection=selection), 2 * CHUNK
    held = torch.arange(2 * CHUNK)
    for chunk in range(2, 30):
        held = kept_of(select, torch.cat([held, torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK)]), budget)
    assert torch.equal(held, kept_of(select, torch.arange(30 * CHUNK), budget))


def test_old_and_new_keys_are_as_likely():
    """Binomial: four standard deviations of a part's count over 50 seeds."""
    parts = torch.zeros(4)
    for seed in range(50):
        parts += (
            kept_of(RandomKeys(seed=seed), torch.arange(4000), 1000)
            .div(1000, rounding_mode="floor")
            .bincount(minlength=4)
        )
    deviation = (50 * 1000 * 0.25 * 0.75) ** 0.5
    assert (parts - 50 * 250).abs().max() < 4 * deviation


def test_seeds_and_layers_draw_others_and_the_same_again():
    position = torch.arange(1000)
    first = kept_of(RandomKeys(), position, 500)
    assert torch.equal(first, kept_of(RandomKeys().fresh(), position, 500))
    for other in (kept_of(RandomKeys(seed=1), position, 500), kept_of(RandomKeys(), position, 500, layer=1)):
        both = torch.isin(first, other).sum()
        assert 180 < both < 320  # of 500, half of which are expected
    with pytest.raises(ValueError, match="seed=-1 must be a whole number of at least 0"):
        replace(RandomKeys(), seed=-1)
