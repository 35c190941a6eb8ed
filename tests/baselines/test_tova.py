"""TOVA: all heads of a layer keep the same keys, by the last frame's mean attention."""

from __future__ import annotations

import torch

from baselines.tova import Tova
from tests.methods import select_keys


def test_heads_keep_the_same_keys_by_their_mean_attention():
    key = 20.0 * torch.eye(12).expand(2, -1, -1)
    query = torch.zeros(4, 12, 12)
    query[:, -1] = key[0, [2, 2, 5, 7]]  # by head
    kept = select_keys(query, key, 3, Tova(), 1, 12).indices
    assert kept.tolist() == [[2, 5, 7]] * 2


def test_only_the_last_frame_is_asked():
    key = 20.0 * torch.eye(12)[None]
    query = torch.zeros(1, 12, 12)
    query[0, :8], query[0, 8:] = key[0, 1], key[0, 6]
    assert select_keys(query[:, 8:], key, 1, Tova(), 4, 12).indices.tolist() == [[6]]
    assert Tova().queries(query, 4).shape[-2] == Tova().num_queries(4, 12) == 4
    assert torch.equal(Tova().queries(query, 4), query[:, 8:])
