"""What a model says of its rotation is what it does: turning back what it turned gives what was there before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowcache.kv.rotary import RotaryPairs
from flowcache.models.magi import attention as magi
from flowcache.models.wan import attention as wan
from flowcache.models.wan.rotary import Rotary, rotary_pairs
from tests.models import magi_goldens, skyreels_goldens

FRAMES, ROWS, COLUMNS = 7, 2, 3
Turned = Callable[[Tensor], Tensor]  # [1, S, H, E] -> the same, rotated


def of_magi() -> tuple[RotaryPairs, Turned, int]:
    rope = magi_goldens.golden_dit("mlp_base").rope
    table = rope(torch.arange(FRAMES), ROWS, COLUMNS)
    return rope.pairs(ROWS, COLUMNS), lambda x: magi.rotate(x, table), 8 * len(rope.bands)


def of_wan() -> tuple[RotaryPairs, Turned, int]:
    table = Rotary(20, FRAMES, ROWS, COLUMNS, "cpu").frames(0, FRAMES - 1)
    return rotary_pairs(20, ROWS, COLUMNS, torch.device("cpu")), lambda x: wan.rotate(x, table), 20


def of_skyreels() -> tuple[RotaryPairs, Turned, int]:
    network = skyreels_goldens.golden_network()
    size, channels = network.config.patch_size, network.config.attention_head_dim
    tables = network.rope_table(FRAMES, ROWS * size[1], COLUMNS * size[2])
    table = tuple(each.flatten(0, 1) for each in tables)
    return rotary_pairs(channels, ROWS, COLUMNS, torch.device("cpu")), lambda x: wan.rotate(x, table), channels


@pytest.mark.parametrize("of", [of_magi, of_wan, of_skyreels])
def test_turning_back_undoes_the_models_rotation(of):
    pairs, turned, channels = of()
    assert sorted([*pairs.first.tolist(), *pairs.second.tolist()]) == list(range(channels))
    x = torch.randn(1, FRAMES * ROWS * COLUMNS, 2, channels, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(x.shape[1])
    frame, place = tokens // (ROWS * COLUMNS), tokens % (ROWS * COLUMNS)
    after = pairs.turned_back(turned(x).transpose(1, 2), frame, place)
    before = torch.complex(x[..., pairs.first], x[..., pairs.second]).transpose(1, 2)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (pairs.turned_back(x.transpose(1, 2), frame, place) - before).abs().max() > 0.1  # it did turn
