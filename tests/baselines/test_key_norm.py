"""Key norms: the shortest keys stay, without a query."""

from __future__ import annotations

import torch

from baselines.key_norm import KeyNorm
from tests.methods import select_keys


def test_the_shortest_keys_stay():
    key = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])[None, :, None] * torch.nn.functional.normalize(
        torch.ones(3), dim=0
    )
    kept = select_keys(key[:, :0], key, 3, KeyNorm(), 1, 3).indices
    assert kept.tolist() == [[1, 3, 4]]
    by_frame = select_keys(key[:, :0], key, 2, KeyNorm(selection="frame"), 2, 2).indices
    assert by_frame.tolist() == [[0, 1]] or by_frame.tolist() == [[2, 3]]  # both have the mean 3


def test_it_costs_no_queries_and_no_products():
    assert KeyNorm().num_queries(4, 12) == 0
    assert KeyNorm().flops(4, 2, 8, 0, 100) == 0
